"""Several servers behind one address, load on them, and what became of every request when one is killed."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

BIN = Path(sys.executable).parent
START_SECONDS = 600
ENGINE = ("--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "16")


def environment() -> dict[str, str]:
    return {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> float:
    """Wait for something outside this process; returns how long it took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            pytest.fail(f"{what}: not within {seconds:.0f} s", pytrace=False)
        time.sleep(0.1)
    return time.monotonic() - start


def status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.HTTPError:
        return None


def answered(url: str) -> float:
    """Requests that a server has finished since it was started."""
    lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match("vllm[:_]request_success_total", line))


class Program:
    """A program with a log that can be started again."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.log = log
        self.env = {**environment(), **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=subprocess.STDOUT, env=self.env, start_new_session=True
            )

    def kill(self) -> None:
        """As when its machine is lost: every process at once, without a word to anybody."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, how: int = signal.SIGTERM, seconds: float = 120) -> int:
        """Ask it to end and return its exit status; -9 where it did not within that time."""
        assert self.process is not None
        self.process.send_signal(how)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def wait_for(self, url: str) -> float:
        def is_up() -> bool:
            if not self.running:
                pytest.fail(f"{' '.join(self.command)} ended:\n{self.log.read_text()[-6000:]}", pytrace=False)
            return status(url) == 200

        return wait_until(is_up, url)


@dataclass(frozen=True)
class Outcome:
    """One request: when it was sent and when it ended (seconds of the monotonic clock), and its fate."""

    sent: float
    ended: float
    status: int | None
    """HTTP status; None where the connection broke."""
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass
class Load:
    """Clients that each ask one thing after another until they are told to stop, eight times in a session."""

    url: str
    body: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _client(self, session: str) -> None:
        with httpx.Client(timeout=120) as client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                sent = time.monotonic()
                code: int | None = None
                detail = ""
                try:
                    headers = {"x-session-id": f"{session}-{number // 8}"}
                    reply = client.post(f"{self.url}/v1/chat/completions", json=self.body, headers=headers)
                    code, detail = reply.status_code, reply.text if reply.status_code != 200 else ""
                except httpx.HTTPError as error:
                    detail = repr(error)
                self.outcomes.append(Outcome(sent, time.monotonic(), code, detail))
                # Leaves the replica that starts again some of the machine.
                self._stop.wait(0.2)

    @contextmanager
    def running(self, clients: int) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._client, args=(f"session-{i}",)) for i in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.ok]

    def in_flight(self, moment: float, until: float | None = None) -> int:
        """How many requests were on their way at a moment, or at some time between it and ``until``."""
        last = moment if until is None else until
        return sum(outcome.sent <= last and outcome.ended >= moment for outcome in self.outcomes)
