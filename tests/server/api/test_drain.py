"""SIGTERM: running answers finish, new requests get a 503, looking stays possible, and the process ends by SIGINT."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from server.api.drain import Drain, DrainMiddleware


class App:
    """An app with one slow route, and what became of the process that serves it."""

    def __init__(self, seconds: float) -> None:
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self.cut = False
        self.drain = Drain(seconds)
        routes = [Route("/work", self._work, methods=["POST"]), Route("/look", self._look)]
        app = Starlette(routes=routes)
        app.add_middleware(DrainMiddleware, drain=self.drain)
        self.asgi = app
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")

    async def _work(self, request: Request) -> Response:
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cut = True
            raise
        return JSONResponse("done")

    async def _look(self, request: Request) -> Response:
        return JSONResponse("here")

    async def start_up(self) -> None:
        """As uvicorn does, after vLLM has installed its own handlers."""
        messages: Iterator[Message] = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> Message:
            return next(messages)

        async def send(message: Message) -> None:
            pass

        await self.asgi({"type": "lifespan"}, receive, send)


@pytest.fixture
async def apps() -> AsyncIterator[Any]:
    """Makes apps. SIGINT, which would end this process, is noted instead."""
    loop = asyncio.get_running_loop()
    made: list[App] = []

    def make(seconds: float) -> App:
        made.append(App(seconds))
        loop.add_signal_handler(signal.SIGINT, made[-1].ended.set)
        return made[-1]

    yield make
    loop.remove_signal_handler(signal.SIGINT)
    loop.remove_signal_handler(signal.SIGTERM)
    for app in made:
        await app.client.aclose()


async def test_a_running_answer_is_finished_and_a_new_request_is_sent_elsewhere(apps: Any) -> None:
    app = apps(seconds=30)
    await app.start_up()
    running = asyncio.create_task(app.client.post("/work"))
    await app.started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    while not app.drain.draining:
        await asyncio.sleep(0)
    refused = await app.client.post("/work")
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"
    assert "shutting down" in refused.json()["error"]["message"]
    assert (await app.client.get("/look")).status_code == 200
    assert not app.ended.is_set()
    app.go_on.set()
    assert (await running).json() == "done"
    await asyncio.wait_for(app.ended.wait(), 10)


async def test_an_idle_server_ends_at_once(apps: Any) -> None:
    app = apps(seconds=30)
    app.drain.begin()
    await asyncio.wait_for(app.ended.wait(), 10)


async def test_answers_that_take_too_long_are_cut(apps: Any) -> None:
    app = apps(seconds=0.05)
    running = asyncio.create_task(app.client.post("/work"))
    await app.started.wait()
    app.drain.begin()
    app.drain.begin()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert app.cut
    await asyncio.wait_for(app.ended.wait(), 10)


async def test_no_time_to_finish_leaves_sigterm_to_vllm(apps: Any) -> None:
    app = apps(seconds=0)
    theirs = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, theirs.set)
    await app.start_up()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(theirs.wait(), 10)
    assert not app.drain.draining
