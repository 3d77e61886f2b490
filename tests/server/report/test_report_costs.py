"""Figures follow from the counts by the formulas beside them, and what is not known is left out."""

from typing import Any

import pytest

from server.report.costs import (
    AFTER,
    BEFORE,
    GPU_SECONDS,
    KV_HOURS,
    MIN_PAIRS,
    MONEY,
    SAVED_TOKENS,
    Assumptions,
    Figure,
    Report,
    report,
)
from server.report.usage import Group, Pairs, Usage

PRICE = Assumptions(gpu_hour=3.6)


def group(**fields: Any) -> Group:
    counts: dict[str, Any] = {"pictures": 10, "original": 5760, "kept": 1440, "kv_bytes_saved": 2e9}
    return Group("m", "default", **{**counts, "compressed_requests": 1000, **fields})


def usage(*groups: Group, **fields: Any) -> Usage:
    known: dict[str, Any] = {"residency": {"m": 1.8}, "instance_hours": {"m": 10.0}}
    return Usage(
        source="a test",
        start=0,
        end=36000,
        groups=list(groups),
        residency_source="given",
        timeline=[],
        **{**known, **fields},
    )


def pairs(count: float = MIN_PAIRS) -> Pairs:
    return Pairs(count=count, ttft=0.1 * count, baseline_ttft=0.46 * count, compared=4, exact=3, overlap=3.5)


def figure(result: Report, name: str) -> Figure:
    figures = [*result.ownership, *(f for section in result.sections for f in section.figures)]
    return next(f for f in figures if f.name == name)


def test_tokens_are_counted_and_memory_is_derived() -> None:
    result = report(usage(group()), PRICE)
    saved, kv = figure(result, SAVED_TOKENS), figure(result, KV_HOURS)
    assert (saved.value, saved.kind) == (4320, "measured")
    assert kv.value == pytest.approx(2 * 1.8 / 3600)
    assert kv.kind == "derived"


def test_pairs_stand_for_the_compressed_requests() -> None:
    result = report(usage(group(pairs=pairs())), Assumptions(gpu_hour=3.6, gpus=2))
    seconds, money = figure(result, GPU_SECONDS), figure(result, MONEY)
    assert seconds.value == pytest.approx(0.36 * 1000 * 2)
    assert money.value == pytest.approx(0.72)
    assert seconds.kind == money.kind == "derived"
    assert figure(result, "Time to first token saved").value == pytest.approx(1 - 0.1 / 0.46)
    assert figure(result, "Same answer").value == 0.75
    assert figure(result, "Token overlap of answers").value == 3.5 / 4


def test_a_few_pairs_are_shown_and_not_multiplied() -> None:
    result = report(usage(group(pairs=pairs(MIN_PAIRS - 1))), PRICE)
    assert figure(result, "Time to first token saved").value is not None
    assert figure(result, GPU_SECONDS).value is None
    assert "--dfmr-baseline-share" in figure(result, GPU_SECONDS).note
    assert figure(result, BEFORE).value is None


def test_without_pairs_prefill_rests_on_what_the_reader_gave_and_says_so() -> None:
    given = Assumptions(gpu_hour=3.6, parameters=7e9, prefill_flops=4e14)
    result = report(usage(group()), given)
    seconds = figure(result, GPU_SECONDS)
    assert seconds.value == pytest.approx(4320 * 2 * 7e9 / 4e14)
    assert seconds.kind == figure(result, MONEY).kind == figure(result, BEFORE).kind == "assumed"
    assert report(usage(group(pairs=pairs())), given).sections[0].value(GPU_SECONDS) == pytest.approx(360)


def test_ownership_before_is_after_and_what_was_saved_less_what_measuring_cost() -> None:
    result = report(usage(group(pairs=pairs())), PRICE)
    measuring = 0.56 * MIN_PAIRS / 3600
    assert figure(result, AFTER).value == pytest.approx(36)
    assert figure(result, BEFORE).value == pytest.approx(36 + (360 / 3600 - measuring) * 3.6)
    assert figure(result, AFTER).kind == "derived"


def test_instances_that_were_not_counted_are_assumed() -> None:
    result = report(usage(group(), instance_hours=None), Assumptions(gpu_hour=3.6, instances=2))
    assert figure(result, AFTER).value == pytest.approx(2 * 10 * 3.6)
    assert figure(result, AFTER).kind == "assumed"


def test_nothing_that_rests_on_a_guess_is_called_measured_and_every_figure_has_a_formula() -> None:
    for given in (PRICE, Assumptions(gpu_hour=1, parameters=1e9, prefill_flops=1e14)):
        result = report(usage(group(pairs=pairs()), Group("n", "lean"), residency={}), given)
        figures = [*result.ownership, *(f for section in result.sections for f in section.figures)]
        assert all(f.formula for f in figures)
        assert all(f.kind != "measured" for f in figures if "given" in f.note)
        assert all(f.note for f in figures if f.value is None and f.unit != "share")
