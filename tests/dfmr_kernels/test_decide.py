from math import inf, nan

import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfmr_kernels.decide import decide, grid_after, thresholds, tokens_after

CANDIDATES = (1, 2, 3, 4, 6, 8, 12)
numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(st.integers(2, 40), numbers, numbers), unique_by=lambda row: row[0]))
def test_decisions_are_the_oracles(rows: list[tuple[int, float, float]]) -> None:
    candidates, scores, limits = zip((1, 0.0, inf), *rows, strict=True)
    assert decide(scores, limits, candidates) == oracle.decide(scores, limits, candidates)


def test_the_largest_factor_below_its_threshold_wins_even_past_one_that_fails() -> None:
    assert decide([0.0, 0.9, 0.4], [inf, 0.5, 0.5], [1, 2, 4]) == 4


def test_a_score_equal_to_its_threshold_does_not_pass() -> None:
    assert decide([0.0, 0.5], [inf, 0.5], [1, 2]) == 1


def test_the_order_of_candidates_does_not_matter() -> None:
    assert decide([0.4, 0.0, 0.3], [0.5, inf, 0.5], [4, 1, 2]) == 4


def test_nothing_passing_means_no_pooling() -> None:
    assert decide([0.0, 1.0], [-inf, 0.5], [1, 2]) == 1


@pytest.mark.parametrize(("limit", "expected"), [(1e300, 1), (-inf, 1), (inf, 2)])
def test_a_nan_score_passes_no_finite_threshold(limit: float, expected: int) -> None:
    assert decide([0.0, nan], [inf, limit], [1, 2]) == expected


@pytest.mark.parametrize(
    ("candidates", "message"),
    [((2, 4), "factor 1"), ((1, 2, 2), "distinct"), ((1, 0), "positive"), ((1, 2.0), "positive"), ((), "factor 1")],
)
def test_bad_candidates_are_refused(candidates: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decide([0.0] * len(candidates), [inf] * len(candidates), candidates)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="got 1 scores and 2 thresholds"):
        decide([0.0], [inf, 0.5], [1, 2])


@given(height=st.integers(1, 99), width=st.integers(1, 99), s=st.integers(1, 99))
def test_token_counts_are_the_oracles(height: int, width: int, s: int) -> None:
    assert tokens_after((height, width), s) == oracle.tokens(height, width, s)
    assert grid_after((height, width), s) == (oracle.tokens(height, 1, s), oracle.tokens(1, width, s))


def test_without_limits_every_factor_has_tau_and_one_is_always_allowed() -> None:
    assert thresholds((24, 24), (1, 2, 4), 0.5) == [inf, 0.5, 0.5]


def test_tau_may_differ_by_factor() -> None:
    assert thresholds((24, 24), (4, 1, 2), {2: 0.5, 4: 0.3}) == [0.3, inf, 0.5]


def test_factors_not_allowed_are_never_chosen() -> None:
    assert thresholds((24, 24), (1, 2, 3, 4), 0.5, factors={1, 3}) == [inf, -inf, 0.5, -inf]


def test_without_one_among_the_factors_the_smallest_is_always_allowed() -> None:
    assert thresholds((24, 24), (1, 2, 4), 0.5, factors={2, 4}) == [-inf, inf, 0.5]


def test_a_token_limit_makes_the_smallest_fitting_factor_the_least() -> None:
    assert thresholds((24, 24), (1, 2, 3, 4), 0.5, max_tokens=100) == [-inf, -inf, inf, 0.5]


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    max_tokens=st.integers(1, 2000),
    scores=st.lists(numbers, min_size=len(CANDIDATES), max_size=len(CANDIDATES)),
)
def test_no_decision_keeps_more_tokens_than_allowed(
    height: int, width: int, max_tokens: int, scores: list[float]
) -> None:
    least = oracle.smallest_fitting(height, width, CANDIDATES, max_tokens)
    if least is None:
        with pytest.raises(ValueError, match="the fewest possible is"):
            thresholds((height, width), CANDIDATES, 0.5, max_tokens=max_tokens)
        return
    chosen = decide(scores, thresholds((height, width), CANDIDATES, 0.5, max_tokens=max_tokens), CANDIDATES)
    assert chosen >= least
    assert tokens_after((height, width), chosen) <= max_tokens


def test_an_impossible_token_limit_says_how_few_are_possible() -> None:
    with pytest.raises(ValueError, match=r"24x24 map within 10 tokens: the fewest possible is 36, at factor 4"):
        thresholds((24, 24), CANDIDATES, 0.5, factors={2, 4}, max_tokens=10)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="some of the candidates"):
        thresholds((24, 24), (1, 2), 0.5, factors={1, 5})
    with pytest.raises(ValueError, match="some of the candidates"):
        thresholds((24, 24), (1, 2), 0.5, factors=())
    with pytest.raises(ValueError, match="no threshold for factor 4"):
        thresholds((24, 24), (1, 2, 4), {2: 0.5})
    with pytest.raises(ValueError, match="NaN"):
        thresholds((24, 24), (1, 2), nan)
    with pytest.raises(ValueError, match="grid"):
        thresholds((0, 24), (1, 2), 0.5)
