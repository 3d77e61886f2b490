"""Routes: vLLM's chat and responses handlers with the compression report added, and the picture explainer."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.background import BackgroundTasks
from vllm.entrypoints.openai.chat_completion.api_router import create_batch_chat_completion, create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.api_router import create_responses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.instrumentator.health import health
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from server.api.baseline import Baseline
from server.api.explain import explanation
from server.api.explain_video import VideoExplanation, explain_video
from server.api.schemas import (
    DfmrBatchRequest,
    DfmrChatCompletionRequest,
    DfmrResponsesRequest,
    ExplainRequest,
    ExplainResponse,
    json_schema_examples,
)
from server.api.stream import with_last_chunk
from server.encoding.decisions import Budget
from server.encoding.encoder import Picture, PictureEncoder
from server.request import RequestState, current_request
from server.request_log import RequestLog
from server.savings import Report
from server.vllm_plugin.connector import reading
from server.vllm_plugin.videos import VideoPart, connector_of, fetch_async

router = APIRouter()
_NOTHING = Report(original_visual_tokens=0, kept_visual_tokens=0, saved_visual_tokens=0, images=[])
_ERRORS: dict[int | str, dict[str, Any]] = {
    HTTPStatus.BAD_REQUEST.value: {"model": ErrorResponse},
    HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": ErrorResponse},
}
_STREAM: dict[int | str, dict[str, Any]] = {HTTPStatus.OK.value: {"content": {"text/event-stream": {}}}}


@router.post(
    "/v1/chat/completions",
    dependencies=[Depends(validate_json_request)],
    responses={**_ERRORS, **_STREAM},
    response_model=None,
)
async def chat_completions(
    request: Annotated[DfmrChatCompletionRequest, Body(openapi_examples=json_schema_examples())],
    raw_request: Request,
) -> Response | None:
    """OpenAI's chat completions; the response says what compression did to each picture."""
    baseline: Baseline | None = getattr(raw_request.app.state, "dfmr_baseline", None)
    longest = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    state = RequestState(
        request.dfmr, keep_rendered=baseline is not None and baseline.draws(request), max_tokens=longest
    )
    return await _with_report(create_chat_completion, request, raw_request, state)


@router.post(
    "/v1/chat/completions/batch", dependencies=[Depends(validate_json_request)], responses=_ERRORS, response_model=None
)
async def chat_completions_batch(request: DfmrBatchRequest, raw_request: Request) -> Response | None:
    """vLLM's batches of conversations, under the policy of the server or of the API key."""
    response: Response | None = await create_batch_chat_completion(request, raw_request)
    return response


@router.post(
    "/v1/responses",
    dependencies=[Depends(validate_json_request)],
    responses={**_ERRORS, **_STREAM},
    response_model=None,
)
async def responses(request: DfmrResponsesRequest, raw_request: Request) -> Response | None:
    """OpenAI's responses; the response says what compression did to each picture."""
    state = RequestState(request.dfmr, max_tokens=request.max_output_tokens)
    return await _with_report(create_responses, request, raw_request, state)


@router.post("/v1/dfmr/explain", dependencies=[Depends(validate_json_request)], responses=_ERRORS)
async def explain(request: ExplainRequest, raw_request: Request) -> ExplainResponse | VideoExplanation:
    """Measure one picture or video and show which of its visual tokens would be kept, and why."""
    renderer = raw_request.app.state.engine_client.renderer
    encoder: PictureEncoder | None = getattr(renderer, "encoder", None)
    if encoder is None:
        raise NotImplementedError("the served model takes no pictures")
    if request.video_url is not None:
        part = VideoPart(request.video_url.url, request.video_url.detail)
        policy = renderer.profiles.book.choose(request.dfmr, _key()).policy
        (video,) = await fetch_async(connector_of(renderer.model_config), [part], renderer.settings.max_video_bytes)
        return await explain_video(renderer.videos, Picture(video, part.detail), policy, request.overlay)
    assert request.image_url is not None
    with reading([request.image_url.url]):
        image = await connector_of(renderer.model_config).fetch_image_async(request.image_url.url)
    boxes = request.image_url.protect + sum((request.dfmr and request.dfmr.protect) or (), ())
    picture = Picture(image, request.image_url.detail, boxes)
    await encoder.look_at([picture])
    profile, policy = renderer.profiles.book.choose(request.dfmr, _key())
    (encoded,) = await encoder.encode([picture], policy, Budget(policy.max_visual_tokens))
    return await encoder.in_thread(explanation, encoder, picture, policy, profile, encoded, overlay=request.overlay)


@router.get("/ready", response_class=Response)
async def ready(raw_request: Request) -> Response:
    """Whether to send requests here: 200 while the engine is alive and the server is not shutting down, else 503.

    Unlike ``/health``, which stays 200 until running answers are finished. Like it, it asks for no API key.
    """
    if raw_request.app.state.dfmr_drain.draining:
        return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
    return await health(raw_request)


def _key() -> str | None:
    """Digest of the request's API key, as the middleware made it."""
    state = current_request.get()
    return None if state is None else state.key


async def _with_report(
    handler: Callable[..., Awaitable[Response | None]],
    request: BaseModel,
    raw_request: Request,
    state: RequestState,
) -> Response | None:
    """Run vLLM's handler with this request's options in force, and add the report to what it answers."""
    state.key, state.counts = _key(), True
    began = time.perf_counter()
    token = current_request.set(state)
    try:
        response = await handler(request, raw_request)
    finally:
        current_request.reset(token)
    if response is None or response.status_code != HTTPStatus.OK:
        return response
    if state.count is not None:
        state.count()
    report = state.report or _NOTHING
    response.headers["x-dfmr-visual-tokens-original"] = str(report.original_visual_tokens)
    response.headers["x-dfmr-visual-tokens-kept"] = str(report.kept_visual_tokens)
    field = b'"dfmr":' + report.model_dump_json().encode()
    if isinstance(response, StreamingResponse):
        chunks: AsyncIterator[Any] = response.body_iterator  # type: ignore[assignment]
        response.body_iterator = with_last_chunk(chunks, field.decode())
    else:
        response.body = bytes(response.body)[:-1] + b"," + field + b"}"
        response.headers["content-length"] = str(len(response.body))
    response.background = BackgroundTasks([response.background] if response.background else None)  # vLLM's own first.
    response.background.add_task(_answered, raw_request, request, state, began)
    return response


async def _answered(raw_request: Request, request: BaseModel, state: RequestState, began: float) -> None:
    """What is done once a whole answer has been sent, streamed or not."""
    app = raw_request.app.state
    log: RequestLog | None = getattr(app, "dfmr_request_log", None)
    if log is not None:
        kv_bytes = app.engine_client.renderer.kv_bytes_per_token
        log.answered(state.report or _NOTHING, kv_bytes, time.perf_counter() - began)
    if isinstance(request, ChatCompletionRequest) and state.rendered is not None:
        await app.dfmr_baseline.offer(request, state)
