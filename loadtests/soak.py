"""Soak and chaos: most of what a server can take, for long, among clients that leave, dawdle and send rubbish."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from evals.results import Target
from loadtests import application
from loadtests.application import Plan
from loadtests.checks import wait_until_idle
from loadtests.errand import HASTY_FACTOR, Ledger
from loadtests.pictures import Gallery
from loadtests.scenarios import Policy
from loadtests.servers import Footprint, Samples, Server
from loadtests.workload import SIDE

SHARE_OF_SATURATION = 0.8
SATURATION_SECONDS = 20
USERS = {"Application": 6, "Leaver": 2, "Hasty": 2, "Broken": 2, "SlowReader": 2}
"""How many of each class; each asks as often as any other, as long as the server keeps up."""
DISTINCT_PICTURES = 400
SPARE_DESCRIPTORS = 8
"""Connections that Prometheus' or our own look at the server may hold."""
MIX = Policy(
    server="dfmr",
    dfmr={"factors": [2, 4], "tau": {2: 1e9, 4: 0}},
    details=[["high", "auto"], ["auto", "low"], ["low", "high"], ["auto", "auto"]],
)


class Look(BaseModel):
    """The server at one moment of the soak."""

    seconds: float
    rss: int
    descriptors: int
    threads: int
    running: float
    waiting: float
    encode_queue: float
    cache_bytes: float


class Soak(BaseModel):
    """What came of it."""

    run: dict[str, Any]
    ledger: Ledger
    looks: list[Look]
    targets: list[Target]


def soak(
    server: Server, minutes: float, cache_bytes: int, folder: Path, say: Callable[[str], None], every: float = 5.0
) -> Soak:
    """Run it on a server of ours that was started here.

    Args:
        cache_bytes: the bound of its feature cache.
        every: seconds between two looks.
    """
    gallery = Gallery(seed=len(str(folder)))
    warm = application.run(
        server,
        MIX,
        Plan(SATURATION_SECONDS, {"Application": 8}, None, DISTINCT_PICTURES, again=True),
        gallery,
        folder / "saturation",
    )
    saturation = len(warm.ledger.answers) / SATURATION_SECONDS
    say(f"saturation: {saturation:.1f} requests/s; soaking at {SHARE_OF_SATURATION:.0%} of it for {minutes:g} minutes")
    wait_until_idle(server)
    before, start = server.metrics(), _look(server, 0.0)
    looks: list[Look] = [start]
    began = time.monotonic()

    def watch() -> None:
        since = time.monotonic() - began
        if since - looks[-1].seconds >= every:
            looks.append(_look(server, since))
            now = looks[-1]
            if len(looks) % 6 == 0:
                say(f"RSS {now.rss / 1e6:.0f} MB, {now.descriptors} descriptors, {now.running:.0f} requests running")

    plan = Plan(60 * minutes, USERS, SHARE_OF_SATURATION * saturation, DISTINCT_PICTURES, again=True)
    outcome = application.run(server, MIX, plan, gallery, folder / "soak", watch)
    idle = wait_until_idle(server)
    looks.append(_look(server, time.monotonic() - began))
    targets = judge(outcome.ledger, before, server.metrics(), looks, cache_bytes, idle)
    told = {"minutes": minutes, "saturation": saturation, "rate": plan.rate, "users": USERS, "cache_bytes": cache_bytes}
    ledger = outcome.ledger.model_copy(update={"answers": []})
    return Soak(run=told, ledger=ledger, looks=looks, targets=targets)


def judge(
    ledger: Ledger, before: Samples, after: Samples, looks: list[Look], cache_bytes: int, idle: bool
) -> list[Target]:
    """What must hold after a soak."""

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    # Users that leave before the headers are the only ones to use their factor; what they left behind is told by it.
    hidden = grown("dfmr_images_total", factor=str(HASTY_FACTOR))
    original = grown("dfmr_visual_tokens_total", stage="original") - ledger.original - hidden * SIDE**2
    kept = grown("dfmr_visual_tokens_total", stage="kept") - ledger.kept - hidden * math.ceil(SIDE / HASTY_FACTOR) ** 2
    answered = sum(ledger.outcomes.get(name, 0) for name in ("answered", "slow"))
    surprises = ledger.outcomes.get("surprise", 0)
    verdicts = [
        _target("requests answered", ">=", 1, answered),
        _target("surprises: wrong status, broken stream, rubbish answered", "<=", 0, surprises),
        _target("requests and pictures left in the server when all clients are gone", "<=", 0, 0 if idle else 1),
        _target("original visual tokens: metrics less responses", "<=", 0, abs(original)),
        _target("kept visual tokens: metrics less responses", "<=", 0, abs(kept)),
    ]
    if looks:
        first, settled, last = looks[0], looks[len(looks) // 5], looks[-1]
        cached = max(look.cache_bytes for look in looks)
        verdicts += [
            _target("file descriptors left over", "<=", SPARE_DESCRIPTORS, last.descriptors - first.descriptors),
            _target("growth of RSS since the first fifth", "<=", 0.03, last.rss / settled.rss - 1),
            _target("feature cache at its largest, over its bound", "<=", 1, cached / cache_bytes),
        ]
    return verdicts


def _look(server: Server, seconds: float) -> Look:
    samples, footprint = server.metrics(), server.footprint() or Footprint(0, 0, 0)
    return Look(
        seconds=seconds,
        rss=footprint.rss,
        descriptors=footprint.descriptors,
        threads=footprint.threads,
        running=samples.total("vllm:num_requests_running"),
        waiting=samples.total("vllm:num_requests_waiting"),
        encode_queue=samples.total("dfmr_encode_queue_pictures"),
        cache_bytes=samples.total("dfmr_cache_bytes"),
    )


def _target(name: str, relation: str, bound: float, measured: float) -> Target:
    met = measured >= bound if relation == ">=" else measured <= bound
    return Target(name=name, target=f"{relation} {bound:g}", measured=round(measured, 4), passed=met)
