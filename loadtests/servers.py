"""Servers under test, started as a user starts them, and what can be seen of them from outside."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
START_SECONDS = 600
STOP_SECONDS = 60
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

Kind = Literal["dfmr", "one-phase"]
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Samples:
    """One reading of ``/metrics``: (name, labels, value)."""

    samples: tuple[tuple[str, dict[str, str], float], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Samples":
        found = []
        for line in text.splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.rpartition(" ")
                found.append((key.partition("{")[0], dict(_LABEL.findall(key)), float(value)))
        return cls(tuple(found))

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of one name that carry these labels; 0 where there are none."""
        return sum(v for n, have, v in self.samples if n == name and labels.items() <= have.items())


@dataclass(frozen=True)
class Footprint:
    """A server's processes together: resident bytes, open file descriptors, threads."""

    rss: int
    descriptors: int
    threads: int


@dataclass
class Server:
    """A server, ours or not, on this machine or elsewhere.

    Attributes:
        kind: whether it takes the ``dfmr`` object of requests.
        process: None where it was not started here.
    """

    url: str
    kind: Kind
    model: str
    tokenizer: str
    process: psutil.Process | None = None
    log: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> Samples:
        return Samples.parse(httpx.get(f"{self.url}/metrics", timeout=30).text)

    def footprint(self) -> Footprint | None:
        """None where the server was not started here."""
        if self.process is None:
            return None
        processes = [self.process, *self.process.children(recursive=True)]
        return Footprint(
            rss=sum(p.memory_info().rss for p in processes),
            descriptors=sum(p.num_fds() for p in processes),
            threads=sum(p.num_threads() for p in processes),
        )


def attached(url: str, kind: Kind, tokenizer: str) -> Server:
    """A server that somebody else started."""
    model = httpx.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"]
    return Server(url, kind, model, tokenizer)


def command(kind: Kind, model: Path, options: Mapping[str, object]) -> tuple[list[str], dict[str, str]]:
    """What starts a server: the command line and what its environment needs.

    Args:
        options: of ``vllm serve`` and ``dfmr-serve``; the latter's are left out for the baseline.
    """
    arguments = []
    for name, value in options.items():
        if kind == "dfmr" or not name.startswith("dfmr-"):
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    if kind == "dfmr":
        return [str(BIN / "dfmr-serve"), str(model), *arguments], {}
    path = os.pathsep.join([str(ROOT / "loadtests" / "one_phase"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return [str(BIN / "vllm"), "serve", str(model), *arguments], {"VLLM_PLUGINS": "one_phase", "PYTHONPATH": path}


@contextmanager
def running(
    wanted: Mapping[str, Kind],
    model: Path,
    options: Mapping[str, object],
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[dict[str, Server]]:
    """Servers by name, started at once on free ports, waited for, and ended on leaving.

    Raises:
        RuntimeError: one ended or did not become healthy; with the end of its log.
    """
    servers: dict[str, Server] = {}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, kind in wanted.items():
            line, extra = command(kind, model, {**options, "served-model-name": "bench", "host": "127.0.0.1"})
            port = _free_port()
            log = folder / f"{name}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*line, "--port", str(port)],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **ENVIRONMENT, **extra},
                    start_new_session=True,
                )
            started.append(process)
            url = f"http://127.0.0.1:{port}"
            servers[name] = Server(url, kind, "bench", str(model), psutil.Process(process.pid), log)
        for (name, server), process in zip(servers.items(), started, strict=True):
            _wait(name, server, process, say)
        yield servers
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
        for process in started:
            _end(process)


def _wait(name: str, server: Server, process: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    start = time.monotonic()
    while True:
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                say(f"server {name} is ready")
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() - start > START_SECONDS:
            assert server.log is not None
            raise RuntimeError(f"server {name} did not start; the end of its log:\n{server.log.read_text()[-4000:]}")
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
