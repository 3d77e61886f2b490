"""The one result type of a run, of which JSON, CSV and the page are renderings."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from evals.results import Target
from loadtests.driver import Run

MARK = "{:g} x capacity"


class Percentiles(BaseModel):
    """Of times in seconds; None where there are none."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        if not values:
            return cls()
        p50, p95, p99 = (float(v) for v in np.percentile(np.asarray(values), (50, 95, 99)))
        return cls(p50=p50, p95=p95, p99=p99)


class Round(BaseModel):
    """One run of a cell. Ratios are taken between cells of the same round, which ran one after the other.

    Attributes:
        ttft_seen, ttft_unseen: of requests whose pictures were, or were not, asked about before.
        encode_seconds: spent in encode calls, for each answered request.
        hits, misses: of our feature cache.
    """

    requests: int
    failed: int
    seconds: float
    requests_per_second: float
    ttft: Percentiles
    ttft_seen: Percentiles
    ttft_unseen: Percentiles
    itl: Percentiles
    e2e: Percentiles
    encode_seconds: float | None = None
    hits: float = 0
    misses: float = 0

    @classmethod
    def of(cls, run: Run) -> "Round":
        done = [r for r in run.requests if not r.error]
        encoded = run.grown("dfmr_encode_seconds_sum")
        return cls(
            requests=len(run.requests),
            failed=len(run.requests) - len(done),
            seconds=run.seconds,
            requests_per_second=len(done) / run.seconds,
            ttft=Percentiles.of([r.ttft for r in done]),
            ttft_seen=Percentiles.of([r.ttft for r in done if r.seen]),
            ttft_unseen=Percentiles.of([r.ttft for r in done if not r.seen]),
            itl=Percentiles.of([gap for r in done for gap in r.itl]),
            e2e=Percentiles.of([r.e2e for r in done]),
            encode_seconds=encoded / len(done) if encoded and done else None,
            hits=run.grown("dfmr_cache_hits_total"),
            misses=run.grown("dfmr_cache_misses_total"),
        )


class Sample(BaseModel):
    """One answered request; times in seconds. Kept so that goodput can be counted once the SLO is known."""

    ttft: float
    e2e: float
    output_tokens: int


class Cell(BaseModel):
    """One scenario under one policy, all its rounds together.

    Attributes:
        variant: "" or what sets this cell apart from others of the same scenario and policy.
        rate: arrivals a second, in open loop.
        prompt_tokens: of a request, on average.
        kept: share of the visual tokens that our server kept.
        kv_blocks: most KV-cache blocks in use at a look.
        prefix_hits: share of prompt tokens found in vLLM's prefix cache.
        goodput: answered requests a second that met the SLO.
    """

    scenario: str
    policy: str
    model: str
    variant: str = ""
    rate: float | None = None
    requests: int
    failed: int
    prompt_tokens: float | None = None
    kept: float | None = None
    ttft: Percentiles
    itl: Percentiles
    e2e: Percentiles
    requests_per_second: float
    images_per_second: float
    output_tokens_per_second: float
    goodput: float | None = None
    kv_blocks: float = 0
    cache_hits: float | None = None
    prefix_hits: float | None = None
    rounds: list[Round] = []
    samples: list[Sample] = Field([], repr=False)


def cell(
    scenario: str, policy: str, model: str, runs: Sequence[Run], variant: str = "", rate: float | None = None
) -> Cell:
    """A cell from its rounds."""
    done = [r for run in runs for r in run.requests if not r.error]
    seconds = sum(run.seconds for run in runs)
    original = sum(run.grown("dfmr_visual_tokens_total", stage="original") for run in runs)
    hits, misses = (sum(run.grown(f"dfmr_cache_{what}_total") for run in runs) for what in ("hits", "misses"))
    queried = sum(run.grown("vllm:prefix_cache_queries_total") for run in runs)
    return Cell(
        scenario=scenario,
        policy=policy,
        model=model,
        variant=variant,
        rate=rate,
        requests=sum(len(run.requests) for run in runs),
        failed=sum(len(run.requests) for run in runs) - len(done),
        prompt_tokens=sum(r.prompt_tokens for r in done) / len(done) if done else None,
        kept=_share(sum(run.grown("dfmr_visual_tokens_total", stage="kept") for run in runs), original),
        ttft=Percentiles.of([r.ttft for r in done]),
        itl=Percentiles.of([gap for r in done for gap in r.itl]),
        e2e=Percentiles.of([r.e2e for r in done]),
        requests_per_second=len(done) / seconds,
        images_per_second=sum(run.pictures for run in runs) / seconds,
        output_tokens_per_second=sum(r.output_tokens for r in done) / seconds,
        kv_blocks=max(run.kv_blocks for run in runs),
        cache_hits=_share(hits, hits + misses),
        prefix_hits=_share(sum(run.grown("vllm:prefix_cache_hits_total") for run in runs), queried),
        rounds=[Round.of(run) for run in runs],
        samples=[Sample(ttft=r.ttft, e2e=r.e2e, output_tokens=r.output_tokens) for r in done],
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


class Slo(BaseModel):
    """What an answer has to keep to count towards goodput, in seconds.

    Attributes:
        ttft: twice what one-phase vLLM takes for four pictures when idle.
        tpot: for each token after the first; four times what one-phase vLLM takes when idle.
    """

    ttft: float
    tpot: float

    def met(self, sample: Sample) -> bool:
        gaps = max(1, sample.output_tokens - 1)
        return sample.ttft <= self.ttft and (sample.e2e - sample.ttft) / gaps <= self.tpot


class Step(BaseModel):
    """One link of phase one's chain, for one picture.

    Attributes:
        seconds: of one picture, median.
        where: which process and thread it occupies.
    """

    name: str
    seconds: float
    where: str
    source: str


class Results(BaseModel):
    """One run."""

    run: dict[str, Any]
    slo: Slo | None = None
    cells: list[Cell] = []
    chain: list[Step] = []
    context: dict[str, int] = {}
    memory: dict[str, float] = {}
    targets: list[Target] = []

    def find(self, scenario: str, policy: str, variant: str = "") -> Cell | None:
        """The cell of that name."""
        wanted = (scenario, policy, variant)
        return next((c for c in self.cells if (c.scenario, c.policy, c.variant) == wanted), None)

    def count_goodput(self) -> None:
        """Set the SLO from the idle one-phase server, and every bench model's cell's goodput from the SLO."""
        idle = self.find("four pictures", "one-phase")
        if idle is None or idle.ttft.p50 is None or idle.itl.p50 is None:
            return
        self.slo = Slo(ttft=2 * idle.ttft.p50, tpot=4 * idle.itl.p50)
        for found in self.cells:
            seconds = sum(r.seconds for r in found.rounds)
            if found.model == "bench" and found.samples:
                found.goodput = sum(map(self.slo.met, found.samples)) / seconds


def write_csv(path: Path, results: Results) -> None:
    """One row for each cell, times in milliseconds."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        times = [f"{what}_{p}_ms" for what in ("ttft", "itl", "e2e") for p in ("p50", "p95", "p99")]
        plain = ["requests", "failed", "prompt_tokens", "kept", "requests_per_second", "images_per_second"]
        plain += ["output_tokens_per_second", "goodput", "kv_blocks", "cache_hits", "prefix_hits"]
        writer.writerow(["scenario", "policy", "variant", "rate", *plain, *times])
        for found in results.cells:
            values = [getattr(found, name) for name in plain]
            spread = [v for p in (found.ttft, found.itl, found.e2e) for v in (p.p50, p.p95, p.p99)]
            row = [_rounded(v, 4) for v in [found.rate, *values]] + [_rounded(v and v * 1000, 2) for v in spread]
            writer.writerow([found.scenario, found.policy, found.variant, *row])


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
