"""Two replicas behind upstream's ``vllm-router``: sessions stick, a killed replica costs its in-flight requests only,
it is used again when it is back, and one that is asked to stop finishes its answers."""

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from deploy_tools import ROOT, tool
from pictures import message, noise
from replicas import BIN, ENGINE, Load, Program, answered, status, wait_until
from serving import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]
MODEL = "tiny-llava-dfmr"


@dataclass
class Replica:
    program: Program
    url: str

    def ready(self) -> None:
        if not self.program.running:
            self.program.start()
        self.program.wait_for(f"{self.url}/ready")


@dataclass
class Fleet:
    url: str
    replicas: list[Replica]
    router: Program


def documented_options() -> list[str]:
    """The router's options as docs/scale-out.md gives them to operators."""
    text = (ROOT / "docs" / "scale-out.md").read_text()
    block = next(b for b in text.split("```") if "vllm-router --policy" in b)
    words = block.replace("\\\n", " ").split()
    start = words.index("--policy")
    return words[start : words.index("--host")]


def cores() -> Iterator[int]:
    """A core for each replica: left to itself, vLLM binds every one to the first, where they starve each other."""
    return itertools.cycle(sorted(os.sched_getaffinity(0)))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    router = tool("vllm-router")
    folder = tmp_path_factory.mktemp("fleet")
    replicas = []
    for core, name in zip(cores(), ("a", "b"), strict=False):
        port = free_port()
        command = [str(BIN / "dfmr-serve"), "--port", str(port), *ENGINE]
        own = {"VLLM_CPU_OMP_THREADS_BIND": str(core)}
        replicas.append(Replica(Program(command, folder / f"{name}.log", own), f"http://127.0.0.1:{port}"))
        replicas[-1].program.start()
    port = free_port()
    command = [router, *documented_options(), "--port", str(port), "--prometheus-port", str(free_port())]
    made = Fleet(
        f"http://127.0.0.1:{port}",
        replicas,
        Program([*command, "--worker-urls", *(r.url for r in replicas)], folder / "router.log"),
    )
    try:
        for replica in replicas:
            replica.ready()
        made.router.start()
        made.router.wait_for(f"{made.url}/health")
        yield made
    finally:
        for program in (made.router, *(r.program for r in replicas)):
            if program.running:
                program.stop()


def body(content: Any = "hi", **more: Any) -> dict[str, Any]:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}


def test_a_session_that_resends_a_picture_finds_it_cached(fleet: Fleet) -> None:
    for session in range(8):
        request = body(message(noise(1000 + session)))
        cached = []
        for turn in range(3):
            request["max_tokens"] = 4 + turn
            reply = httpx.post(
                f"{fleet.url}/v1/chat/completions",
                json=request,
                headers={"x-session-id": f"session-{session}"},
                timeout=120,
            )
            assert reply.status_code == 200, reply.text
            cached.append(reply.json()["dfmr"]["images"][0]["cached"])
        assert cached == [False, True, True]
    assert all(answered(replica.url) > 0 for replica in fleet.replicas), "sessions are spread over both replicas"


def test_a_killed_replica_costs_its_in_flight_requests_only_and_comes_back(fleet: Fleet) -> None:
    killed = fleet.replicas[0]
    load = Load(fleet.url, body(max_tokens=32))
    with load.running(clients=6):
        wait_until(lambda: len(load.outcomes) > 40, "traffic")
        moment = time.monotonic()
        killed.program.kill()
        wait_until(lambda: len(load.outcomes) > 150, "traffic after the kill", 120)
        restarted = time.monotonic()
        killed.ready()
        ready = time.monotonic()
        before = answered(killed.url)
        taken_up = wait_until(lambda: answered(killed.url) > before + 5, "traffic on the replica that came back", 60)
    failed = load.failed()
    in_flight = load.in_flight(moment)
    print(
        json.dumps(
            {
                "requests": len(load.outcomes),
                "in flight at the kill": in_flight,
                "failed": len(failed),
                "longest request after the kill, s": max(
                    round(o.ended - o.sent, 2) for o in load.outcomes if o.sent > moment - 30
                ),
                "restart to ready, s": round(ready - restarted, 1),
                "ready to serving, s": round(taken_up, 1),
            }
        )
    )
    assert all(o.sent <= moment + 0.1 for o in failed), [o for o in failed if o.sent > moment]
    assert len(failed) <= in_flight


def test_a_replica_that_is_stopped_finishes_its_answer_and_ends_with_zero(fleet: Fleet) -> None:
    stopped = fleet.replicas[1]
    lines: list[str] = []
    begun = threading.Event()

    def stream() -> None:
        request = body(max_tokens=3600, stream=True)
        with httpx.stream("POST", f"{stopped.url}/v1/chat/completions", json=request, timeout=120) as reply:
            for line in reply.iter_lines():
                lines.append(line)
                begun.set()

    client = threading.Thread(target=stream)
    client.start()
    assert begun.wait(60)
    exit_status: list[int] = []
    stopping = threading.Thread(target=lambda: exit_status.append(stopped.program.stop()))
    stopping.start()
    wait_until(lambda: status(f"{stopped.url}/ready") == 503, "not ready", 10)
    assert "data: [DONE]" not in lines, "the answer was too short to be caught in the middle"
    refused = httpx.post(f"{stopped.url}/v1/chat/completions", json=body(), timeout=30)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert status(f"{stopped.url}/health") == 200
    elsewhere = httpx.post(f"{fleet.url}/v1/chat/completions", json=body(), timeout=60)
    assert elsewhere.status_code == 200, elsewhere.text
    client.join()
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert any('"finish_reason":"length"' in line for line in lines)
    stopping.join()
    assert exit_status == [0]
