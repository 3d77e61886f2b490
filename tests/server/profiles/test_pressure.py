"""A ceiling that goes down while the KV cache is full, and up again, without fluttering."""

import math
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from dfmr_kernels.decide import tokens_after
from server.policy import Policy
from server.profiles.book import Entry, ProfileBook
from server.profiles.format import Pressure
from server.profiles.pressure import KV_USAGE, Level, PressureWatch, kv_usage

GRID = (24, 24)
STEPS = ({"max_tokens_per_image": 288}, {"max_tokens_per_image": 144}, {"max_tokens_per_image": 64})
POLICY = Policy(tau=1.0, factors=(1, 2, 3, 4))
_names = (f"test-pressure-{i}" for i in count())


def pressure(**changes: Any) -> Pressure:
    return Pressure.model_validate({"steps": STEPS, "hold_seconds": 5, "calm_seconds": 30, **changes})


def run(usages: list[float], **changes: Any) -> list[int]:
    """Levels after a look every second."""
    level = Level(pressure(**changes))
    return [level.observe(usage, second) for second, usage in enumerate(usages)]


def test_it_goes_down_a_step_for_each_time_that_the_cache_stays_full_and_no_further_than_there_are_steps() -> None:
    assert run([0.95] * 22) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 7


def test_a_moment_of_pressure_is_nothing() -> None:
    assert set(run(([0.95] * 5 + [0.8]) * 20)) == {0}


def test_it_comes_back_a_step_at_a_time_and_more_slowly() -> None:
    levels = run([0.95] * 11 + [0.5] * 70)
    assert levels[10] == 2
    assert (levels[11 + 29], levels[11 + 30], levels[11 + 59], levels[11 + 60]) == (2, 1, 1, 0)


def test_between_the_marks_it_stays() -> None:
    assert run([0.95] * 6 + [0.8] * 500)[-1] == 1
    assert run([0.95] * 6 + ([0.5] * 29 + [0.8]) * 20)[-1] == 1


def test_it_does_not_move_where_nothing_is_known() -> None:
    assert set(run([math.nan] * 100)) == {0}
    assert run([0.95] * 6 + [math.nan] * 100)[-1] == 1


@given(st.lists(st.floats(0, 1), max_size=200))
def test_it_moves_one_step_at_a_time_and_stays_within_them(usages: list[float]) -> None:
    levels = [0, *run(usages, hold_seconds=1, calm_seconds=2)]
    assert all(abs(after - before) <= 1 for before, after in pairwise(levels))
    assert all(0 <= level <= 3 for level in levels)
    for usage, (before, after) in zip(usages, pairwise(levels), strict=True):
        assert after <= before or usage >= 0.9
        assert after >= before or usage <= 0.7


def watch_at(level: int) -> PressureWatch:
    watch = PressureWatch(next(_names))
    watch.adopt(ProfileBook({"p": Entry(POLICY, pressure=pressure(hold_seconds=0)), "other": Entry(POLICY)}))
    for second in range(level):
        watch.observe(1.0, second)
    return watch


@pytest.mark.parametrize(("level", "ceiling"), [(0, None), (1, 288), (2, 144), (3, 64)])
def test_the_ceiling_is_that_of_the_level_for_its_own_profile_only(level: int, ceiling: int | None) -> None:
    watch = watch_at(level)
    assert watch.limited("p", POLICY, GRID, 1).max_tokens_per_image == ceiling
    assert watch.limited("other", POLICY, GRID, 1) is POLICY


def test_a_request_that_asks_for_less_still_gets_less() -> None:
    asked = POLICY.model_copy(update={"max_tokens_per_image": 36})
    assert watch_at(1).limited("p", asked, GRID, 1).max_tokens_per_image == 36


@given(level=st.integers(0, 3), factors=st.sets(st.sampled_from([1, 2, 3, 4]), min_size=1))
def test_a_ceiling_never_refuses_a_picture(level: int, factors: set[int]) -> None:
    policy = POLICY.model_copy(update={"factors": tuple(sorted(factors))})
    limited = watch_at(level).limited("p", policy, GRID, 1)
    row = limited.thresholds((1, 2, 3, 4), GRID, "auto")
    least = next(s for s, limit in zip((1, 2, 3, 4), row, strict=True) if limit == math.inf)
    ceiling = {0: 576, 1: 288, 2: 144, 3: 64}[level]
    assert tokens_after(GRID, least) <= max(ceiling, tokens_after(GRID, max(factors)))


def test_a_reload_keeps_the_level_where_the_steps_stay_and_lifts_it_where_they_go() -> None:
    watch = watch_at(2)
    entry = Entry(POLICY, "renamed", pressure=pressure(hold_seconds=0))
    watch.adopt(ProfileBook({"p": entry}))
    assert watch.limited("p", POLICY, GRID, 1).max_tokens_per_image == 144
    watch.adopt(ProfileBook({"p": entry._replace(pressure=None)}))
    assert watch.limited("p", POLICY, GRID, 1) is POLICY
    assert REGISTRY.get_sample_value("dfmr_pressure_level", {"model_name": watch._model, "profile": "p"}) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"low": 0.9}, "low .* must be less than high"),
        ({"steps": []}, "steps"),
        ({"steps": [{}]}, "a step needs"),
        ({"steps": STEPS[::-1]}, "must not grow"),
        ({"high": 1.5}, "high"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pressure(**changes)


def test_the_usage_is_that_of_the_fullest_engine_of_this_model() -> None:
    registry = CollectorRegistry()
    gauge = Gauge(KV_USAGE, "KV-cache usage", ("model_name", "engine"), registry=registry)
    assert math.isnan(kv_usage(registry, "m"))
    for model, engine, value in (("m", "0", 0.2), ("m", "1", 0.7), ("other", "0", 0.9)):
        gauge.labels(model, engine).set(value)
    assert kv_usage(registry, "m") == 0.7


def test_vllms_gauge_has_the_name_and_labels_that_are_read() -> None:
    import inspect

    from vllm.v1.metrics import loggers

    source = inspect.getsource(loggers.PrometheusStatLogger)
    assert f'name="{KV_USAGE}"' in source
    assert '"model_name", "engine"' in source
