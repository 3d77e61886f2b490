"""SIGTERM: what is being answered is finished, what is new gets a 503, and then the process ends.

vLLM's own draining (``--shutdown-timeout``) finishes what its engine holds, but it takes away at once what phase one
needs, and answers new requests with empty, aborted completions. So ours comes before it: the engine is told to stop
when nobody waits for it any more. SIGINT, and SIGTERM with ``--shutdown-timeout 0``, are left to vLLM.
"""

import asyncio
import os
import signal
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.serve import create_error_response
from vllm.exceptions import GracefulHTTPError

from server.errors import RETRY_AFTER_SECONDS

_UNWIND_SECONDS = 2.0
"""For requests whose time is up: as long as it takes to tell the engine that nobody waits for their answers."""


class Drain:
    """Requests that are being answered by this API process, and whether it still takes new ones.

    Args:
        seconds: that running answers have, before they are cut.
    """

    def __init__(self, seconds: float) -> None:
        self.draining = False
        self._seconds = seconds
        self._running: set[asyncio.Task[Any]] = set()
        self._end: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Take SIGTERM over from vLLM, whose handlers are in place by now. Runs in the event loop's own thread."""
        if self._seconds > 0:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.begin)

    def begin(self) -> None:
        """Refuse new requests, finish the running ones, then have vLLM end the process. Only the first call counts."""
        if not self.draining:
            self.draining = True
            self._end = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=self._seconds)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=_UNWIND_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    async def answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Have ``app`` answer a request, unless this process is about to end."""
        if self.draining:
            await _REFUSAL(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await app(scope, receive, send)
        finally:
            self._running.discard(task)


class DrainMiddleware:
    """ASGI middleware around vLLM's app: every POST is work that is finished or refused; the rest is looking."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.drain.listen()
        if scope["type"] == "http" and scope["method"] == "POST":
            await self.drain.answer(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


_REFUSAL = JSONResponse(
    create_error_response(
        GracefulHTTPError(
            f"This server is shutting down. Please retry in {RETRY_AFTER_SECONDS} s on a different instance.",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )
    ).model_dump(),
    status_code=HTTPStatus.SERVICE_UNAVAILABLE,
    headers={"Retry-After": str(RETRY_AFTER_SECONDS), "Connection": "close"},
)
