"""One OpenAI-compatible endpoint: questions, what it offers, and explanations of single pictures."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from openai import APIStatusError, AsyncOpenAI, OpenAIError
from PIL import Image

from evals import pictures
from evals.policies import Offer

_REFUSED = (400, 404, 422)
_NO_SUCH_ROUTE = (400, 404, 405, 422, 500, 501)


class NotOfferedError(Exception):
    """The endpoint does not do what a policy asks; the message says why."""


class RequestFailedError(Exception):
    """A request failed for good."""


@dataclass
class Reply:
    """An answer and what it cost.

    Attributes:
        kept, original: visual tokens after and before compression; None where the endpoint does not say.
        factors, scores: per picture; no factor where its blocks have their own.
        cached: pictures whose features came from a cache.
        ttft: seconds to the first token.
    """

    answer: str = ""
    finish: str | None = None
    kept: int | None = None
    original: int | None = None
    factors: list[int | None] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    cached: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ttft: float | None = None
    seconds: float = 0.0


class Endpoint:
    """Asynchronous client of one endpoint and model.

    Args:
        url: base URL, with ``/v1``.
        model: None takes the first that the endpoint lists.
        retries: how often overload, server errors and lost connections are tried again.
    """

    def __init__(
        self, url: str, model: str | None = None, *, api_key: str = "none", timeout: float = 300, retries: int = 4
    ) -> None:
        self.url = url.rstrip("/")
        self._model = model
        self._client = AsyncOpenAI(base_url=self.url, api_key=api_key, timeout=timeout, max_retries=retries)
        self.offer = Offer()

    @property
    def model(self) -> str:
        """Name of the served model; known after `connect`."""
        assert self._model is not None
        return self._model

    async def connect(self) -> None:
        """Find out the model and what the endpoint offers.

        Raises:
            RequestFailedError: nothing answers there, or it serves no model.
        """
        try:
            models = (await self._client.models.list()).data
        except OpenAIError as error:
            raise RequestFailedError(f"{self.url}: {error}") from error
        names = [model.id for model in models]
        if self._model is None:
            if not names:
                raise RequestFailedError(f"{self.url} serves no model")
            self._model = names[0]
        self.offer = _offer(await self.explain(_blank(), None))

    async def close(self) -> None:
        await self._client.close()

    async def explain(self, url: str, dfmr: dict[str, Any] | None, *, overlay: bool = False) -> dict[str, Any] | None:
        """What ``POST /v1/dfmr/explain`` says about a picture; None where the endpoint has no such route.

        Raises:
            RequestFailedError: it has, and failed.
        """
        body: dict[str, Any] = {"image_url": {"url": url}, "overlay": overlay}
        if dfmr is not None:
            body["dfmr"] = dfmr
        try:
            return cast(dict[str, Any], await self._client.post("/dfmr/explain", body=body, cast_to=object))
        except APIStatusError as error:
            if error.status_code in _NO_SUCH_ROUTE:
                return None
            raise RequestFailedError(str(error)) from error
        except OpenAIError as error:
            raise RequestFailedError(str(error)) from error

    async def check(self, dfmr: dict[str, Any] | None) -> None:
        """Ask about a blank picture with this ``dfmr`` object.

        Raises:
            NotOfferedError: the endpoint refuses it or takes no notice of it.
        """
        if dfmr is None:
            return
        try:
            reply = await self.ask([_blank()], "?", dfmr, max_tokens=1)
        except NotOfferedError as error:
            raise NotOfferedError(f"refused: {error}") from error
        if reply.kept is None or not reply.factors:
            raise NotOfferedError("the endpoint takes no notice of the dfmr object")

    async def ask(
        self,
        urls: Sequence[str],
        question: str,
        dfmr: dict[str, Any] | None,
        *,
        max_tokens: int,
        system: str | None = None,
    ) -> Reply:
        """One question about pictures, greedily answered.

        Raises:
            NotOfferedError: the endpoint refuses the request as such (400, 404, 422).
            RequestFailedError: it failed after all retries.
        """
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        began = time.perf_counter()
        reply = Reply()
        text: list[str] = []
        try:
            stream = await self._client.chat.completions.create(
                model=self.model,
                messages=cast(Any, messages),
                temperature=0,
                max_tokens=max_tokens,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=None if dfmr is None else {"dfmr": dfmr},
            )
            async for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content:
                        text.append(choice.delta.content)
                    if reply.ttft is None and (choice.delta.content or choice.finish_reason):
                        reply.ttft = time.perf_counter() - began
                    reply.finish = choice.finish_reason or reply.finish
                _account(reply, chunk.usage, (chunk.model_extra or {}).get("dfmr"))
        except APIStatusError as error:
            if error.status_code in _REFUSED:
                raise NotOfferedError(_message(error)) from error
            raise RequestFailedError(f"HTTP {error.status_code}: {_message(error)}") from error
        except (OpenAIError, httpx.HTTPError) as error:
            raise RequestFailedError(f"{type(error).__name__}: {error}") from error
        reply.seconds = time.perf_counter() - began
        reply.answer = "".join(text)
        return reply

    async def scores(self, urls: Sequence[str], concurrency: int) -> list[dict[int, float] | None]:
        """Every picture's score at each factor on offer; None for one that is refused.

        Raises:
            NotOfferedError: the endpoint has no route that tells them.
        """
        gate = asyncio.Semaphore(concurrency)
        if not self.offer.tokens:
            raise NotOfferedError("a token target needs /v1/dfmr/explain")

        async def one(url: str) -> dict[int, float] | None:
            async with gate:
                explained = await self.explain(url, {"enabled": True})
            return None if explained is None else {c["factor"]: c["score"] for c in explained["candidates"]}

        return list(await asyncio.gather(*(one(url) for url in urls)))


def _account(reply: Reply, usage: Any, report: Any) -> None:
    """Enter what a chunk says about tokens."""
    if usage is not None:
        reply.prompt_tokens, reply.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        details = getattr(usage.prompt_tokens_details, "multimodal_tokens", None) or {}
        if reply.kept is None and "image" in details:
            reply.kept = details["image"]
    if isinstance(report, dict):
        reply.kept, reply.original = report["kept_visual_tokens"], report["original_visual_tokens"]
        reply.factors = [image["factor"] for image in report["images"]]
        reply.scores = [image["score"] for image in report["images"]]
        reply.cached = sum(bool(image.get("cached")) for image in report["images"])


def _offer(explained: dict[str, Any] | None) -> Offer:
    if explained is None:
        return Offer()
    allowed = set(explained["policy"]["factors"])
    tokens = {c["factor"]: c["visual_tokens"] for c in explained["candidates"] if c["factor"] in allowed}
    tau = explained["policy"]["tau"]
    above = [s for s in tokens if s > min(tokens)]
    taus = {s: float(tau[str(s)] if isinstance(tau, dict) else tau) for s in above}
    return Offer(tokens, explained["original_visual_tokens"], taus)


def _message(error: APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict) and inner.get("message"):
            return " ".join(str(inner["message"]).split())
    return str(error)


def _blank() -> str:
    return pictures.data_url(Image.new("RGB", (336, 336), (128, 128, 128)))
