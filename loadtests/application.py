"""Runs the users of `locustfile.py` in a process of their own: Locust replaces the standard library's sockets."""

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from loadtests.driver import Request, Run
from loadtests.pictures import Gallery, Kind
from loadtests.scenarios import Policy
from loadtests.servers import Server
from server.policy import Detail

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
KINDS: tuple[Kind, ...] = ("photograph", "document", "chart")
HASTY_FACTOR = 6
"""Used only by users that leave before the headers that would tell them their tokens: the server counts pictures by
factor, so that theirs can be told from the others'."""
SPARE_SECONDS = 60
"""For Locust to start, and to end what is under way."""


class Errand(BaseModel):
    """What the Locust process is told.

    Attributes:
        dfmr: the ``dfmr`` object of requests; empty for a server that does not know it.
        details: a row for each request in turn.
        pictures: data URLs, used in turn; a long run sees them again.
        users: how many of each class.
        rate: requests a second of all users together; None has them ask again at once.
        ledger: where to write what came of it.
    """

    model: str
    dfmr: dict[str, object]
    details: list[list[Detail]]
    pictures: Path
    users: dict[str, int]
    rate: float | None
    ledger: Path
    seed: int = 0


class Answer(BaseModel):
    """One answer that was read to its end."""

    ttft: float
    itl: list[float]
    output_tokens: int
    prompt_tokens: int
    follow_up: bool


class Ledger(BaseModel):
    """What the users saw.

    Attributes:
        answers: those read to their end.
        original, kept: visual tokens, from the headers of all responses that began, whatever became of them.
        outcomes: how many requests ended how.
        surprises: what should not have happened, the first few.
        pictures: in requests that were answered.
    """

    answers: list[Answer] = []
    original: int = 0
    kept: int = 0
    outcomes: dict[str, int] = {}
    surprises: list[str] = []
    pictures: int = 0


@dataclass(frozen=True)
class Plan:
    """How long, who, and how fast."""

    seconds: float
    users: Mapping[str, int]
    rate: float | None = None
    distinct_pictures: int = 96


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
    taken = itertools.islice(gallery.urls(KINDS), plan.distinct_pictures)
    (folder / "pictures.txt").write_text("\n".join(taken))
    errand = Errand(
        model=server.model,
        dfmr=policy.dfmr if server.kind == "dfmr" else {},
        details=policy.details or [["auto"]],
        pictures=folder / "pictures.txt",
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
