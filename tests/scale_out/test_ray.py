"""The Ray Serve application, started by its one command with two replicas: as for the router, and what Ray adds."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from deploy_tools import ROOT
from pictures import message, noise
from replicas import BIN, ENGINE, Load, Program, answered, status, wait_until
from serving import free_port

pytest.importorskip("ray", reason="ray is not installed (make setup-scale-out): NOT CHECKED")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]
MODEL = "tiny-llava-dfmr"
ACTOR_SECONDS = 0.1
"""What was killed is a server. Until its actor has ended as well, requests that reach it are lost like those before."""
# No dashboard, little shared memory, and Ray's own watch over memory off: the machine is not Ray's alone.
CLUSTER = (
    "--head",
    "--node-ip-address=127.0.0.1",
    "--disable-usage-stats",
    "--include-dashboard=false",
    "--object-store-memory=80000000",
)
ENVIRONMENT = {"RAY_memory_monitor_refresh_ms": "0", "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}


def servers(under: psutil.Process) -> list[psutil.Process]:
    """The replicas' ``dfmr-serve`` processes: those that a Ray worker of this cluster started."""
    return [
        process
        for process in under.children(recursive=True)
        if process.is_running() and "ServeReplica" in " ".join(parent_command(process)) and is_server(process)
    ]


def parent_command(process: psutil.Process) -> list[str]:
    try:
        parent = process.parent()
        return [] if parent is None else parent.cmdline()
    except psutil.Error:
        return []


def is_server(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("dfmr-serve") for word in process.cmdline())
    except psutil.Error:
        return False


def address(server: psutil.Process) -> str:
    """Where a replica's server listens: its command line ends with the port."""
    return f"http://127.0.0.1:{server.cmdline()[-1]}"


class Cluster:
    def __init__(self, folder: Path) -> None:
        port, gcs = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = {**ENVIRONMENT, "RAY_ADDRESS": f"127.0.0.1:{gcs}"}
        self.head = Program(
            [str(BIN / "ray"), "start", *CLUSTER, "--num-cpus=1", f"--port={gcs}", "--block"], folder / "ray.log", env
        )
        config = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [
                {
                    "name": "dfmr",
                    "import_path": "deploy.ray.app:build",
                    "args": {
                        "gpus": 0,
                        "cpus": 0.2,
                        "min_replicas": 2,
                        "max_replicas": 2,
                        "options": " ".join(ENGINE[2:]),
                    },
                }
            ],
        }
        (folder / "serve.yaml").write_text(json.dumps(config))
        self.application = Program([str(BIN / "serve"), "run", str(folder / "serve.yaml")], folder / "serve.log", env)

    def is_up(self) -> bool:
        """Whether Ray has started. It gives up after half a minute, which a busy machine may need: started again."""
        if not self.head.running:
            self.head.start()
        return "Ray runtime started" in self.head.log.read_text()

    def servers(self) -> list[psutil.Process]:
        assert self.head.process is not None
        return servers(psutil.Process(self.head.process.pid))

    def uses_both(self) -> bool:
        """Whether new sessions have reached both servers. Makes one more."""
        headers = {"x-session-id": str(time.monotonic())}
        httpx.post(f"{self.url}/v1/chat/completions", json=body(max_tokens=1), headers=headers, timeout=60)
        urls = [address(server) for server in self.servers()]
        return len(urls) == 2 and all(status(f"{url}/ready") == 200 and answered(url) > 0 for url in urls)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        wait_until(made.is_up, "Ray", 300)
        made.application.start()
        made.application.wait_for(f"{made.url}/ready")
        wait_until(made.uses_both, "traffic on both servers")
        yield made
    finally:
        for program, how in ((made.application, signal.SIGINT), (made.head, signal.SIGTERM)):
            if program.running:
                program.stop(how)


def body(content: Any = "hi", **more: Any) -> dict[str, Any]:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}


def test_a_session_that_resends_a_picture_finds_it_cached(cluster: Cluster) -> None:
    for session in range(4):
        cached = []
        for _ in range(3):
            reply = httpx.post(
                f"{cluster.url}/v1/chat/completions",
                json=body(message(noise(1000 + session))),
                headers={"x-session-id": f"session-{session}"},
                timeout=120,
            )
            assert reply.status_code == 200, reply.text
            cached.append(reply.json()["dfmr"]["images"][0]["cached"])
        assert cached == [False, True, True]


def test_answers_are_streamed_as_they_come(cluster: Cluster) -> None:
    times = []
    request = body(max_tokens=100, stream=True)
    with httpx.stream("POST", f"{cluster.url}/v1/chat/completions", json=request, timeout=120) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith("data: "):
                times.append((time.monotonic(), line))
    assert times[-1][1] == "data: [DONE]"
    assert len({moment for moment, _ in times}) > 10


def test_errors_pass_through_unchanged(cluster: Cluster) -> None:
    refused = httpx.post(f"{cluster.url}/v1/chat/completions", json=body(max_tokens=-1), timeout=60)
    assert refused.status_code == 400
    assert "max_tokens" in refused.json()["error"]["message"]
    assert status(f"{cluster.url}/nowhere") == 404


def test_a_killed_replica_costs_its_in_flight_requests_only_and_is_replaced(cluster: Cluster) -> None:
    wait_until(lambda: len(cluster.servers()) == 2, "two servers")
    victim = cluster.servers()[0]
    survivors = {process.pid for process in cluster.servers()} - {victim.pid}
    load = Load(cluster.url, body(max_tokens=32))
    with load.running(clients=6):
        wait_until(lambda: len(load.outcomes) > 40, "traffic")
        moment = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: {p.pid for p in cluster.servers()} - {victim.pid} > survivors, "another server", 120)
        replaced = time.monotonic() - moment
        (new,) = {process.pid for process in cluster.servers()} - survivors - {victim.pid}
        url = address(psutil.Process(new))
        wait_until(lambda: status(f"{url}/ready") == 200, "ready")
        ready = time.monotonic() - moment
        wait_until(lambda: answered(url) > 5, "traffic on the new replica", 120)
        served = time.monotonic() - moment
    failed = load.failed()
    in_flight = load.in_flight(moment, moment + ACTOR_SECONDS)
    print(
        json.dumps(
            {
                "requests": len(load.outcomes),
                "in flight at the kill": in_flight,
                "failed": [o.detail[:200] for o in failed],
                "kill to new server process, s": round(replaced, 1),
                "kill to ready, s": round(ready, 1),
                "kill to serving, s": round(served, 1),
            }
        )
    )
    late = [outcome for outcome in failed if outcome.sent > moment + ACTOR_SECONDS]
    assert not late
    assert len(failed) <= in_flight
