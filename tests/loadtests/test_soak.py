"""The soak's verdicts, of what clients and server say."""

import pytest

from loadtests.errand import Ledger
from loadtests.servers import Samples
from loadtests.soak import Look, judge

BOUND = 1000


def look(seconds: float, rss: int = 100, descriptors: int = 50, cache: float = 900) -> Look:
    counts = {"running": 0.0, "waiting": 0.0, "encode_queue": 0.0, "cache_bytes": cache, "threads": 9}
    return Look(seconds=seconds, rss=rss, descriptors=descriptors, **counts)  # type: ignore[arg-type]


def metrics(original: int, kept: int, hasty: int) -> Samples:
    return Samples.parse(
        f'dfmr_visual_tokens_total{{model_name="m",stage="original"}} {original}.0\n'
        f'dfmr_visual_tokens_total{{model_name="m",stage="kept"}} {kept}.0\n'
        f'dfmr_images_total{{model_name="m",factor="6",source="encoder"}} {hasty}.0\n'
    )


LEDGER = Ledger(original=5760, kept=1440, outcomes={"answered": 9, "slow": 1})


def failures(ledger: Ledger, after: Samples, looks: list[Look], idle: bool = True) -> list[str]:
    return [t.name for t in judge(ledger, metrics(0, 0, 0), after, looks, BOUND, idle) if not t.passed]


def test_all_is_well_when_metrics_equal_responses() -> None:
    assert failures(LEDGER, metrics(5760, 1440, 0), [look(0), look(1), look(2)]) == []


def test_pictures_of_clients_that_left_early_are_told_by_their_factor() -> None:
    assert failures(LEDGER, metrics(5760 + 2 * 576, 1440 + 2 * 16, 2), [look(0), look(1)]) == []


@pytest.mark.parametrize(
    ("after", "looks", "idle", "name"),
    [
        (metrics(5761, 1440, 0), [look(0), look(1)], True, "original visual tokens"),
        (metrics(5760, 1439, 0), [look(0), look(1)], True, "kept visual tokens"),
        (metrics(5760, 1440, 0), [look(0), look(1, descriptors=90)], True, "file descriptors"),
        (metrics(5760, 1440, 0), [look(0), look(1, rss=104)], True, "growth of RSS"),
        (metrics(5760, 1440, 0), [look(0, cache=1001), look(1)], True, "feature cache"),
        (metrics(5760, 1440, 0), [look(0), look(1)], False, "requests and pictures left"),
    ],
)
def test_each_leak_is_named(after: Samples, looks: list[Look], idle: bool, name: str) -> None:
    (failed,) = failures(LEDGER, after, looks, idle)
    assert failed.startswith(name)


def test_a_surprise_is_a_failure() -> None:
    ledger = LEDGER.model_copy(update={"outcomes": {"answered": 9, "surprise": 1}})
    (failed,) = failures(ledger, metrics(5760, 1440, 0), [look(0), look(1)])
    assert failed.startswith("surprises")
