"""Failures of phase one, each a vLLM error class, so that vLLM's own handlers answer with the right status."""

from http import HTTPStatus
from typing import ClassVar

from vllm.exceptions import GracefulHTTPError, VLLMValidationError

RETRY_AFTER_SECONDS = 1


REASONS = (
    "decode",
    "encode",
    "detail",
    "fetch",
    "missing",
    "nonfinite",
    "overloaded",
    "policy",
    "preprocess",
    "too_large",
    "too_long",
)
"""Why pictures are refused: the values of the ``reason`` label of ``dfmr_image_errors_total``."""


class RefusedError(Exception):
    """A request that is refused for its pictures, and counted by ``reason`` in ``dfmr_image_errors_total``."""

    reason: str


class PictureError(VLLMValidationError, RefusedError):
    """A picture that cannot be served. The request gets a 400 that names the picture's index and the reason.

    ``kind`` is what the message calls it.

    Args:
        index: position of the picture in the request, counted from 0 over all messages; None where it is not known.
        reason: one of `REASONS`.
        message: what is wrong and what to do about it.
    """

    kind: ClassVar[str] = "image"

    def __init__(self, index: int | None, reason: str, message: str) -> None:
        super().__init__(message if index is None else f"{self.kind} {index}: {message}")
        self.parameter = None if index is None else f"{self.kind}[{index}]"
        self.index = index
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return str(self.args[0])


class VideoError(PictureError):
    """A video that cannot be served; videos are counted by themselves, from 0 over all messages."""

    kind = "video"


class EncoderOverloadedError(GracefulHTTPError, RefusedError):
    """The queue before the vision encoder is full: 503, to be retried here later or on another replica."""

    reason = "overloaded"

    def __init__(self, max_queue: int, what: str = "pictures") -> None:
        super().__init__(
            f"The vision encoder's queue is full ({max_queue} {what}). Please retry in {RETRY_AFTER_SECONDS} s "
            "or on a different instance.",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )


class EncodeFailedError(GracefulHTTPError, RefusedError):
    """The worker failed on a picture that passed every check: the server's fault, not the client's."""

    reason = "encode"

    def __init__(self, message: str) -> None:
        super().__init__(f"encoding a picture failed: {message}", HTTPStatus.INTERNAL_SERVER_ERROR)
