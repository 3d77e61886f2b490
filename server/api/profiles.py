"""Routes: which profiles there are, reading their file again, and what the encoder is known by."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError

from server.policy import Policy
from server.profiles.book import Entry, key_digest
from server.profiles.format import Fingerprint
from server.vllm_plugin.renderer import DfmrRenderer

router = APIRouter()
_ERRORS: dict[int | str, dict[str, Any]] = {HTTPStatus.BAD_REQUEST.value: {"model": ErrorResponse}}


class ProfileReport(BaseModel):
    """One policy that can be in force."""

    name: str
    note: str
    policy: Policy = Field(description="the whole policy: what the profile leaves open is the server's own")
    target_tokens: float | None = Field(description="mean visual tokens a picture that it was calibrated to")


class ProfilesResponse(BaseModel):
    """What a request may name in ``dfmr.profile``."""

    object: Literal["dfmr.profiles"] = "dfmr.profiles"
    profiles: list[ProfileReport]
    server: str = Field(description="the profile of requests that name none and whose API key has none")
    yours: str = Field(description="the profile of a request with your API key that names none")
    keys: int = Field(description="number of API keys that have a profile of their own")
    rejected: str | None = Field(description="why the file, as it is now, is not in force; null if it is")


class EncoderResponse(BaseModel):
    """What a calibration is made with, and is valid for."""

    object: Literal["dfmr.encoder"] = "dfmr.encoder"
    fingerprint: Fingerprint
    metric: str = Field(description="what is measured in a window")
    aggregate: str = Field(description="how the windows of a picture become its score")
    grid: tuple[int, int] = Field(description="rows and columns of the feature map")
    factors: Sequence[int] = Field(description="pooling factors that are measured")


@router.get("/v1/dfmr/profiles")
async def profiles(raw_request: Request) -> ProfilesResponse:
    """The profiles in force in the API process that answers."""
    return _listing(raw_request)


@router.post("/v1/dfmr/profiles/reload", responses=_ERRORS)
async def reload(raw_request: Request) -> ProfilesResponse:
    """Read the profiles file again, all or nothing; a file that is refused leaves the old profiles in force.

    Other API processes of this server take the changed file up within a few seconds.
    """
    store = _renderer(raw_request).profiles
    if not store.book.files:
        raise VLLMValidationError("this server has no profiles file: start it with --dfmr-profiles FILE")
    try:
        await store.reload()
    except ValueError as error:
        raise VLLMValidationError(f"the old profiles stay in force: {error}") from error
    return _listing(raw_request)


@router.get("/v1/dfmr/encoder")
async def encoder(raw_request: Request) -> EncoderResponse:
    """What the served encoder is known by."""
    renderer = _renderer(raw_request)
    assert renderer.encoder is not None
    policy = renderer.encoder.policy
    return EncoderResponse(
        fingerprint=renderer.fingerprint,
        metric=policy.metric,
        aggregate=policy.aggregate,
        grid=renderer.encoder.grid,
        factors=renderer.encoder.candidates,
    )


def _renderer(raw_request: Request) -> DfmrRenderer:
    renderer = raw_request.app.state.engine_client.renderer
    if not isinstance(renderer, DfmrRenderer) or renderer.encoder is None:
        raise NotImplementedError("the served model takes no pictures")
    return renderer


def _listing(raw_request: Request) -> ProfilesResponse:
    store = _renderer(raw_request).profiles
    return ProfilesResponse(
        profiles=[_report(name, entry) for name, entry in store.book.entries.items()],
        server=store.book.server,
        yours=store.book.choose(key=key_digest(raw_request.headers.get("authorization"))).name,
        keys=len(store.book.keys),
        rejected=store.rejected,
    )


def _report(name: str, entry: Entry) -> ProfileReport:
    target = entry.calibration.target_tokens if entry.calibration else None
    return ProfileReport(name=name, note=entry.note, policy=entry.policy, target_tokens=target)
