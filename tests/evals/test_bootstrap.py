import math

import pytest

from evals import bootstrap
from evals.bootstrap import mean, paired_difference


def test_two_questions_by_hand() -> None:
    """Draws of (0, 1) with replacement average to 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    found = mean({"a": 0.0, "b": 1.0})
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_equal_scores_have_no_spread() -> None:
    found = mean({str(n): 0.75 for n in range(9)})
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)


def test_many_questions_approach_the_normal_interval() -> None:
    found = mean({str(n): float(n % 4 == 0) for n in range(2000)})
    half = 1.96 * math.sqrt(0.25 * 0.75 / 2000)
    assert found.value == 0.25
    assert found.low == pytest.approx(0.25 - half, abs=0.003)
    assert found.high == pytest.approx(0.25 + half, abs=0.003)


def test_pairing_takes_out_what_both_share() -> None:
    full = {str(n): float(n % 2) for n in range(100)}
    ours = {**full, "1": 0.0}
    found = paired_difference(ours, full)
    assert found.value == pytest.approx(-0.01)
    assert -0.04 < found.low <= found.high <= 0


def test_only_questions_that_both_answered_count() -> None:
    assert paired_difference({"a": 1.0, "b": 1.0}, {"a": 0.0, "c": 0.0}).value == 1.0
    with pytest.raises(ValueError, match="no questions"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_questions_of_a_group_are_drawn_together() -> None:
    """A hundred questions about two pictures know no more than two do."""
    values = {f"{picture}{n}": float(picture == "a") for picture in "ab" for n in range(50)}
    groups = {name: name[0] for name in values}
    assert mean(values).low > 0.35
    assert (mean(values, groups).low, mean(values, groups).high) == (0.0, 1.0)


def test_groups_of_different_size_weigh_by_their_questions() -> None:
    assert mean({"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}, {"b": "g", "c": "g", "d": "g"}).value == 0.25


def test_large_sets_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CHUNK", 1000)
    found = mean({str(n): float(n % 2) for n in range(500)})
    assert found.low == pytest.approx(0.456, abs=0.01)
    assert found.high == pytest.approx(0.544, abs=0.01)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = {str(n): (n % 7) / 7 for n in range(50)}
    assert mean(values, seed=5) == mean(values, seed=5)
