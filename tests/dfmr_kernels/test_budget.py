"""`choose` loses the least within a budget: what trying everything finds, and promises that hold for any budget."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfmr_kernels import budget as module
from dfmr_kernels.budget import choose, fewest_tokens

Case = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]


@st.composite
def cases(draw: st.DrawFn, most_items: int = 5) -> Case:
    """Items whose losses are often equal, and whose options are in no order."""
    shape = draw(st.integers(1, most_items)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    allowed = rng.random(shape) < 0.8
    allowed[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = True
    # Multiples of a power of two, whose sums are exact, so that equal ones are equal.
    losses = rng.integers(0, 5, shape) * draw(st.sampled_from([1.0, 2.0**-9, 2.0**20]))
    return rng.integers(1, 12, shape), losses, allowed


def best_of_all(case: Case, budget: int) -> list[int]:
    """By trying every choice: least loss, then most tokens, then the first items' tokens."""
    tokens, losses, allowed = case
    items = range(len(tokens))
    choices = itertools.product(*(np.flatnonzero(row).tolist() for row in allowed))
    fitting = [c for c in choices if sum(tokens[i, c[i]] for i in items) <= budget]
    return list(
        min(
            fitting,
            key=lambda c: (
                sum(losses[i, c[i]] for i in items),
                -sum(tokens[i, c[i]] for i in items),
                [(-tokens[i, c[i]], c[i]) for i in items],
            ),
        )
    )


def kept(case: Case, columns: NDArray[np.intp]) -> int:
    return int(case[0][np.arange(len(columns)), columns].sum())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.data())
def test_nothing_beats_it(case: Case, data: st.DataObject) -> None:
    budget = data.draw(st.integers(fewest_tokens(case[0], case[2]), int(case[0].sum())))
    assert choose(*case, budget).tolist() == best_of_all(case, budget)


@pytest.mark.parametrize("largest_table", [0, module.LARGEST_TABLE])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(most_items=30))
def test_no_budget_is_exceeded_and_more_of_it_never_keeps_less(largest_table: int, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGEST_TABLE", largest_table)
        fewest = fewest_tokens(case[0], case[2])
        budgets = range(fewest, fewest + 80)
        found = [choose(*case, budget) for budget in budgets]
    tokens = [kept(case, columns) for columns in found]
    assert all(count <= budget for count, budget in zip(tokens, budgets, strict=True))
    assert tokens == sorted(tokens)
    assert all(case[2][np.arange(len(columns)), columns].all() for columns in found)


def test_the_greedy_solution_is_near_the_best() -> None:
    rng = np.random.default_rng(1)
    tokens = np.tile(np.array([16, 4, 1]), (400, 1))
    losses = np.sort(rng.random((400, 3)), axis=1)
    case = tokens, losses, np.ones(tokens.shape, bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGEST_TABLE", 0)
        greedy = choose(*case, 2000)
    best = choose(*case, 2000)
    rows = np.arange(400)
    assert losses[rows, best].sum() <= losses[rows, greedy].sum() <= losses[rows, best].sum() * 1.01


def test_what_cannot_fit_is_refused_with_the_fewest_possible() -> None:
    with pytest.raises(ValueError, match="the fewest possible is 7"):
        choose(np.array([[4, 3], [4, 4]]), np.zeros((2, 2)), np.ones((2, 2), bool), 6)


def test_earlier_items_keep_their_detail_among_equals() -> None:
    tokens = np.tile(np.array([9, 4]), (4, 1))
    losses = np.tile(np.array([0.0, 1.0]), (4, 1))
    assert choose(tokens, losses, np.ones((4, 2), bool), 26).tolist() == [0, 0, 1, 1]


def test_no_items_need_no_tokens() -> None:
    assert choose(np.empty((0, 3), np.int64), np.empty((0, 3)), np.empty((0, 3), bool), 0).tolist() == []


def test_twelve_pictures_of_36_blocks_are_decided_in_milliseconds() -> None:
    """A bound that a busy machine meets; on a quiet one it is about a millisecond."""
    rng = np.random.default_rng(2)
    tokens = np.tile(np.array([16, 4, 1]), (12 * 36, 1))
    losses = np.cumsum(rng.gamma(1, 1, tokens.shape), axis=1) * np.array([0, 1, 1])
    allowed = np.ones(tokens.shape, bool)
    times = []
    for budget in (500, 1000, 3000, 6000) * 3:
        start = time.perf_counter()
        choose(tokens, losses, allowed, budget)
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.02
