"""A Ray Serve application of autoscaling dfmr-server replicas.

    serve run deploy.ray.app:build model=llava-hf/llava-1.5-7b-hf max_replicas=4

A replica starts ``dfmr-serve`` as it is started anywhere else, passes requests on to it, and lives and dies with it.
Sessions stick to a replica by their ``x-session-id`` header, as they do behind ``vllm-router``.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

logger = logging.getLogger("ray.serve")

SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
TEARDOWN_SECONDS = 30
"""For an idle server to end: the engine's processes give their memory back."""
_HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


_GONE = {
    "error": {
        "message": "this replica's server has ended and another takes its place; please ask again",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": HTTPStatus.SERVICE_UNAVAILABLE,
    }
}
"""As vLLM reports errors. Clients of OpenAI's library ask again by themselves."""


class Settings(BaseModel):
    """What ``serve run`` takes as ``name=value``."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", description="checkpoint, a folder or a hub name; empty: the embedded model")
    options: str = Field("", description="further options of dfmr-serve, as on a command line")
    gpus: int = Field(1, ge=0, description="GPUs of a replica; more than one is tensor parallelism, 0 is the CPU build")
    cpus: float = Field(4, ge=0, description="cores that Ray sets aside for a replica")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(4, ge=1)
    target_ongoing_requests: float = Field(32, gt=0, description="requests per replica that autoscaling aims at")
    max_ongoing_requests: int = Field(256, ge=1, description="requests that a replica takes before others are asked")
    downscale_seconds: float = Field(600, ge=0, description="a replica takes minutes to load: not given back too soon")
    start_seconds: float = Field(1800, gt=0, description="that loading the model may take")
    shutdown_seconds: int = Field(60, ge=0, description="that running answers have when a replica is taken away")

    def arguments(self) -> list[str]:
        """``dfmr-serve``'s command line, but for where it listens."""
        parallel = ["--tensor-parallel-size", str(self.gpus)] if self.gpus > 1 else []
        named = [self.model] if self.model else []
        end = ["--shutdown-timeout", str(self.shutdown_seconds)]
        return [*named, *parallel, *end, *shlex.split(self.options)]


def program() -> str:
    """``dfmr-serve`` of this Python environment, or else on PATH.

    Raises:
        RuntimeError: there is none on this node.
    """
    beside = Path(sys.executable).parent / "dfmr-serve"
    found = str(beside) if beside.is_file() else shutil.which("dfmr-serve")
    if found is None:
        raise RuntimeError("dfmr-serve is not installed on this node: pip install '.[gpu,ray]' in this repository")
    return found


async def _closing(answer: httpx.Response) -> AsyncIterator[bytes]:
    """An answer's bytes as they come; whoever stops listening ends the request in the engine too."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


class Replica:
    """One server and the way to it."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # as Ray Serve documents
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        # Should this process be killed, the kernel asks the server to end.
        command = ["setpriv", "--pdeathsig", "TERM", program(), *settings.arguments()]
        self.server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
        self.stopping = False
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None, limits=unlimited)
        threading.Thread(target=self._die_with_server, daemon=True).start()
        await self._wait_until_ready(settings.start_seconds)

    async def _wait_until_ready(self, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await self.client.get("/ready", timeout=5)).is_success:
                        return
                await asyncio.sleep(0.5)

    def _die_with_server(self) -> None:
        """Ray replaces an actor that is gone at once, and one that fails its health checks only after several."""
        status = self.server.wait()
        if not self.stopping:
            logger.error("dfmr-serve (pid %d) ended with status %d; this replica ends too", self.server.pid, status)
            os._exit(1)

    async def check_health(self) -> None:
        """Ray's health check: fails once the engine is dead.

        Raises:
            httpx.HTTPError: the server does not answer, or says that its engine is dead.
        """
        (await self.client.get("/health", timeout=20)).raise_for_status()

    async def __call__(self, request: Request) -> Response:
        """Pass a request on, and its answer back as it comes."""
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        onward = self.client.build_request(request.method, path, headers=headers, content=await request.body())
        try:
            answer = await self.client.send(onward, stream=True)
        except httpx.TransportError:
            return JSONResponse(_GONE, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"})
        back = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        return StreamingResponse(_closing(answer), answer.status_code, back)

    def __del__(self) -> None:
        """Ray takes a replica away when its requests are finished, or their time is up."""
        self.stopping = True
        self.server.send_signal(signal.SIGTERM)
        try:
            self.server.wait(TEARDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self.server.kill()


def build(settings: Settings) -> Application:
    """The application, for ``serve run`` and for Serve's configuration files."""
    deployment = serve.deployment(
        name="dfmr-server",
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests,
            downscale_delay_s=settings.downscale_seconds,
        ),
        max_ongoing_requests=settings.max_ongoing_requests,
        request_router_config=RequestRouterConfig(request_router_class=SESSION_ROUTER),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.shutdown_seconds + TEARDOWN_SECONDS,
    )
    application: Application = deployment(Replica).bind(settings)
    return application
