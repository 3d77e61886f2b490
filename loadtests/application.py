"""Runs the users of `locustfile.py` in a process of their own: Locust replaces the standard library's sockets."""

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.driver import Request, Run
from loadtests.errand import Errand, Ledger
from loadtests.pictures import Gallery, Kind
from loadtests.scenarios import Policy
from loadtests.servers import Server

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
KINDS: tuple[Kind, ...] = ("photograph", "document", "chart")
SPARE_SECONDS = 180
"""For Locust to start, and to end what is under way."""


@dataclass(frozen=True)
class Plan:
    """How long, who, and how fast.

    Attributes:
        pictures: that are drawn before the run.
        again: whether uploads repeat once all were sent. Else every upload is a file that no server has seen, however
            many are made; the faster of two would otherwise find more of its pictures in its cache.
    """

    seconds: float
    users: Mapping[str, int]
    rate: float | None = None
    pictures: int = 96
    again: bool = False


@dataclass(frozen=True)
class Outcome:
    """What the users saw, and the same as a run like any other."""

    ledger: Ledger
    run: Run


def run(
    server: Server,
    policy: Policy,
    plan: Plan,
    gallery: Gallery,
    folder: Path,
    meanwhile: Callable[[], None] = lambda: None,
) -> Outcome:
    """Let users loose on a server.

    Args:
        meanwhile: called every few seconds.

    Raises:
        RuntimeError: Locust failed; with the end of what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = itertools.islice(gallery.urls(KINDS), plan.pictures)
    (folder / "pictures.txt").write_text("\n".join(taken))
    errand = Errand(
        model=server.model,
        dfmr=policy.dfmr if server.kind == "dfmr" else {},
        details=[list(row) for row in policy.details] or [["auto"]],
        pictures=folder / "pictures.txt",
        again=plan.again,
        users=dict(plan.users),
        rate=plan.rate,
        ledger=folder / "ledger.json",
    )
    (folder / "errand.json").write_text(errand.model_dump_json())
    count = str(sum(plan.users.values()))
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--host", server.url, "-u", count, "-r", count, "-t", f"{plan.seconds:.0f}s", "--stop-timeout", "30"]
    command += ["--exit-code-on-error", "0", "--errand", str(folder / "errand.json"), *plan.users]
    before = server.metrics()
    with (folder / "locust.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=LOCUSTFILE.parent.parent)
        try:
            for _ in range(int(plan.seconds + SPARE_SECONDS)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                    break
                meanwhile()
        finally:
            process.kill()
            process.wait()
    if not errand.ledger.exists():
        raise RuntimeError(f"Locust failed:\n{(folder / 'locust.log').read_text()[-3000:]}")
    ledger = Ledger.model_validate_json(errand.ledger.read_text())
    requests = tuple(
        Request(a.ttft, tuple(a.itl), a.prompt_tokens, a.output_tokens, a.follow_up) for a in ledger.answers
    )
    return Outcome(ledger, Run(requests, plan.seconds, ledger.pictures, before, server.metrics(), 0))
