"""What one HTTP request asks of phase one and what phase one tells it, across vLLM code that passes neither on."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from server.encoding.encoder import Picture
from server.encoding.jobs import EncodedPicture
from server.policy import DfmrOptions
from server.savings import Report


class Rendered(NamedTuple):
    """A request as phase one left it, from which its prompt can be made again.

    Attributes:
        prompt: token ids, with one image token per picture.
        pictures: the pictures, as they were sent.
        encoded: what was made of them.
    """

    prompt: list[int]
    pictures: list[Picture]
    encoded: list[EncodedPicture]


@dataclass
class RequestState:
    """Set by the middleware or by a route, read and filled by the renderer that runs below it.

    Attributes:
        options: the request's ``dfmr`` object.
        key: SHA-256 of the request's API key; None if it has none.
        report: what became of its pictures; None until they are encoded, or if there are none.
        keep_rendered: whether ``rendered`` is wanted; it holds on to the pictures.
        rendered: the request after phase one, if it is wanted and there are pictures.
        max_tokens: the longest answer that it asks for; None if it does not say.
        counts: whether a route counts what becomes of the pictures, once it knows that the request is answered.
        count: adds the report to the metrics; None if there is nothing to add.
    """

    options: DfmrOptions | None = None
    key: str | None = None
    report: Report | None = None
    keep_rendered: bool = False
    rendered: Rendered | None = None
    max_tokens: int | None = None
    counts: bool = False
    count: Callable[[], None] | None = None


current_request: ContextVar[RequestState | None] = ContextVar("dfmr_request", default=None)
