"""What is promised of speed, checked against a run. A missed target is reported as short."""

from collections.abc import Callable
from statistics import median

from evals.results import Target
from loadtests.matrix import ALONE
from loadtests.results import Results, Round

OVERHEAD, ONE, FOUR, SATURATED = "two-phase overhead", "one picture", "four pictures", "four pictures, saturated"
SEEN, RUNNING, API = "four pictures, four of five seen", "running answers under picture load", "API process"
BESIDE = "twelve beside one"
Figure = Callable[[Round], float | None]


def rate(found: Round) -> float | None:
    return found.requests_per_second


def gap(found: Round) -> float | None:
    return found.itl.p99


def first_token(found: Round) -> float | None:
    return found.ttft.p50


def check(results: Results) -> list[Target]:
    """All targets; those that could not be measured count as short."""
    dfmr = results.find(SEEN, "dfmr")
    hits = dfmr.cache_hits if dfmr else None
    memory, context = results.memory, _context(results)
    overhead, throughput = _ratio(results, OVERHEAD, rate, "uncompressed"), _ratio(results, SATURATED, rate, "dfmr")
    waits, wait = _ratio(results, ONE, first_token, "uncompressed"), _ratio(results, FOUR, first_token, "dfmr")
    return [
        _target("two-phase overhead: requests/s, uncompressed over one-phase", ">=", 0.97, overhead),
        _target("two-phase overhead: TTFT p50, one at a time, uncompressed over one-phase", "<=", 1.03, waits),
        _target("4 pictures at 25 %: visual tokens kept", "<=", 0.25, _kept(results)),
        _target("4 pictures at 25 %: TTFT p50 over one-phase", "<=", 0.35, wait),
        _target("4 pictures at 25 %: requests/s over one-phase", ">=", 2.5, throughput),
        _target("4 pictures at 25 %: TTFT p50 over the limit (encode + text-only)", "<=", 1.1, _limit(results)),
        _target("repeated pictures: TTFT p50 over unseen ones", "<=", 0.3, _repeated(results)),
        _target("repeated pictures: share found in the feature cache", ">=", 0.79, hits),
        _target(
            "API process: requests/s, uncompressed over one-phase",
            ">=",
            0.95,
            _ratio(results, API, rate, "uncompressed"),
        ),
        _target("API process: TTFT p95 of one picture beside twelve, over alone", "<=", 1.5, _blocking(results)),
        _target("running answers: p99 ITL, fixed over one-phase", "<=", 1.2, _ratio(results, RUNNING, gap, "fixed")),
        _target(
            "running answers: p99 ITL, uncompressed over one-phase",
            "<=",
            1.2,
            _ratio(results, RUNNING, gap, "uncompressed"),
        ),
        _target("context of 4096: pictures a request at 25 % over one-phase", ">=", 3.5, context),
        _target("memory: growth of RSS over 1,000 requests", "<=", 0.03, memory.get("rss_growth")),
        _target("memory: feature cache over its bound", "<=", 1.0, memory.get("cache_share_of_bound")),
    ]


def _ratio(results: Results, scenario: str, figure: Figure, policy: str, base: str = "one-phase") -> float | None:
    """Median over rounds of a policy's figure over the baseline's in the same round."""
    ours, theirs = results.find(scenario, policy), results.find(scenario, base)
    if ours is None or theirs is None:
        return None
    pairs = [(figure(a), figure(b)) for a, b in zip(ours.rounds, theirs.rounds, strict=False)]
    ratios = [a / b for a, b in pairs if a is not None and b]
    return median(ratios) if ratios else None


def _kept(results: Results) -> float | None:
    found = results.find(FOUR, "dfmr")
    return found.kept if found else None


def _limit(results: Results) -> float | None:
    """Against an encode call's time and the prefill of text of the same length: no server can beat it."""
    ours, text = results.find(FOUR, "dfmr"), results.find(FOUR, "text-only")
    if ours is None or text is None:
        return None
    rounds = zip(ours.rounds, text.rounds, strict=False)
    ratios = [
        a.ttft.p50 / (a.encode_seconds + b.ttft.p50)
        for a, b in rounds
        if a.ttft.p50 and a.encode_seconds and b.ttft.p50
    ]
    return median(ratios) if ratios else None


def _repeated(results: Results) -> float | None:
    found = results.find(SEEN, "dfmr")
    pairs = [(r.ttft_seen.p50, r.ttft_unseen.p50) for r in found.rounds] if found else []
    ratios = [seen / unseen for seen, unseen in pairs if seen is not None and unseen]
    return median(ratios) if ratios else None


def _blocking(results: Results) -> float | None:
    beside, alone = (results.find(BESIDE, "fixed", variant) for variant in ("", ALONE))
    if beside is None or alone is None or beside.ttft.p95 is None or not alone.ttft.p95:
        return None
    return beside.ttft.p95 / alone.ttft.p95


def _context(results: Results) -> float | None:
    ours, theirs = results.context.get("fixed"), results.context.get("one-phase")
    return ours / theirs if ours and theirs else None


def _target(name: str, relation: str, bound: float, measured: float | None) -> Target:
    met = measured is not None and (measured >= bound if relation == ">=" else measured <= bound)
    rounded = None if measured is None else round(measured, 4)
    return Target(name=name, target=f"{relation} {bound:g}", measured=rounded, passed=met)
