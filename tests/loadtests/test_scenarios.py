"""What a run takes of the matrix."""

import pytest

from loadtests.scenarios import load


def test_a_run_takes_the_scenarios_of_its_size_and_no_more_rounds_than_wanted() -> None:
    matrix = load()
    assert "API process, not saturated" not in [s.name for s in matrix.chosen("short", [])]
    (chosen,) = matrix.chosen("full", ["four pictures"], most_rounds=2)
    assert (chosen.name, chosen.rounds) == ("four pictures", (2, 2))
    assert matrix.chosen("full", ["four pictures"])[0].rounds == (3, 5)


def test_a_short_run_takes_fewer_policies_where_a_scenario_says_so() -> None:
    (short,) = load().chosen("short", ["one picture"])
    (full,) = load().chosen("full", ["one picture"])
    assert short.policies == ["one-phase", "uncompressed"]
    assert len(full.policies) == 6


def test_policies_can_take_the_place_of_a_scenarios_own() -> None:
    (chosen,) = load().chosen("short", ["twelve beside one"], policies=["one-phase", "fixed"])
    assert chosen.policies == ["one-phase", "fixed"]
    with pytest.raises(ValueError, match="no policy two-phase; there are: one-phase, uncompressed"):
        load().chosen("short", [], policies=["two-phase"])
