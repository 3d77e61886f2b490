"""What one HTTP request asks of phase one and what phase one tells it, across vLLM code that passes neither on."""

from contextvars import ContextVar
from dataclasses import dataclass

from server.policy import DfmrOptions
from server.savings import Report


@dataclass
class RequestState:
    """Set by a route, read and filled by the renderer that runs below it.

    Attributes:
        options: the request's ``dfmr`` object.
        report: what became of its pictures; None until they are encoded, or if there are none.
    """

    options: DfmrOptions | None = None
    report: Report | None = None


current_request: ContextVar[RequestState | None] = ContextVar("dfmr_request", default=None)
