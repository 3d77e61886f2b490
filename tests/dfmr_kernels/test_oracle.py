"""Hand-computed tiny cases that pin the oracle itself down; every expected number is worked out in the comments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import oracle
import pytest

INF = math.inf
NAN = math.nan
TOL = 1e-12


def one_channel(rows: list[list[float]]) -> npt.NDArray[np.float64]:
    """Nested list (H, W) -> array (H, W, 1)."""
    return np.array(rows, dtype=np.float64)[:, :, np.newaxis]


NINE = one_channel([[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def test_factor_one_is_the_identity() -> None:
    np.testing.assert_array_equal(oracle.window_mean(NINE, 1), NINE)
    np.testing.assert_array_equal(oracle.window_sigma(NINE, 1), np.zeros((3, 3)))
    assert oracle.score(NINE, 1) == 0.0


def test_two_by_two_one_window() -> None:
    # 1 3 5 7: mean 16/4 = 4; deviations -3 -1 1 3; squares 9+1+1+9 = 20; population variance 20/4 = 5 (not 20/3)
    x = one_channel([[1, 3], [5, 7]])
    assert oracle.window_mean(x, 2).tolist() == [[[4.0]]]
    assert oracle.window_sigma(x, 2).shape == (1, 1)
    assert oracle.window_sigma(x, 2)[0, 0] == pytest.approx(math.sqrt(5), abs=TOL)
    assert oracle.score(x, 2) == pytest.approx(2.23606797749979, abs=TOL)


def test_three_by_three_with_partial_windows() -> None:
    # s = 2: {1,2,4,5} mean 3, squares 4+1+1+4 = 10, variance 2.5; {3,6} mean 4.5, sigma 1.5;
    #        {7,8} mean 7.5, sigma 0.5; {9} mean 9, sigma 0
    root = 1.5811388300841898  # sqrt(2.5)
    assert oracle.window_mean(NINE, 2).tolist() == [[[3.0], [4.5]], [[7.5], [9.0]]]
    np.testing.assert_allclose(oracle.window_sigma(NINE, 2), [[root, 1.5], [0.5, 0.0]], rtol=0, atol=TOL)
    # score (root + 1.5 + 0.5 + 0) / 4
    assert oracle.score(NINE, 2) == pytest.approx(0.8952847075210475, abs=TOL)


@pytest.mark.parametrize("s", [3, 4, 100])
def test_window_as_large_as_or_larger_than_the_picture(s: int) -> None:
    # 1..9: mean 45/9 = 5; squares 2 * (16+9+4+1) = 60; variance 60/9 = 20/3
    assert oracle.window_mean(NINE, s).tolist() == [[[5.0]]]
    assert oracle.window_sigma(NINE, s).tolist() == [[pytest.approx(2.581988897471611, abs=TOL)]]


def test_rows_and_columns_are_not_swapped() -> None:
    # 2 x 5 at s = 2 -> 1 x 3: {0,2,0,2} mean 1 sigma 1; {10,10,30,30} mean 20 sigma 10; {5,11} mean 8 sigma 3
    x = one_channel([[0, 2, 10, 10, 5], [0, 2, 30, 30, 11]])
    assert oracle.window_mean(x, 2).tolist() == [[[1.0], [20.0], [8.0]]]
    assert oracle.window_sigma(x, 2).tolist() == [[1.0, 10.0, 3.0]]
    # the transposed picture gives the transposed maps
    assert oracle.window_sigma(x.transpose(1, 0, 2), 2).tolist() == [[1.0], [10.0], [3.0]]


def test_windows_start_at_the_top_left() -> None:
    # 1 x 3 at s = 2: {0,4} and {9}, never {0} and {4,9}
    assert oracle.window_mean(one_channel([[0, 4, 9]]), 2).tolist() == [[[2.0], [9.0]]]
    assert oracle.window_mean(one_channel([[0], [4], [9]]), 2).tolist() == [[[2.0]], [[9.0]]]


def test_every_window_weighs_the_same() -> None:
    # {0,4} sigma 2 and {9} sigma 0: (2 + 0) / 2 = 1; weighing by elements would give (2*2 + 1*0) / 3 = 4/3
    assert oracle.score(one_channel([[0, 4, 9]]), 2) == 1.0


def test_two_channels_are_averaged_after_the_root() -> None:
    # channel 0: {0,2,0,2} mean 1 sigma 1; channel 1: {10,10,30,30} mean 20 sigma 10; (1 + 10) / 2 = 5.5
    # (the root of the mean variance would be sqrt(50.5) = 7.1, the std over everything larger still)
    x = np.array([[[0, 10], [2, 10]], [[0, 30], [2, 30]]], dtype=np.float64)
    assert oracle.window_mean(x, 2).tolist() == [[[1.0, 20.0]]]
    assert oracle.window_sigma(x, 2).tolist() == [[5.5]]
    assert oracle.score(x, 2) == 5.5


def test_two_channels_partial_window() -> None:
    # 1 x 3 at s = 2; channel 0: {1,5} mean 3 sigma 2, {7} sigma 0; channel 1: {0,-8} mean -4 sigma 4, {2} sigma 0
    x = np.array([[[1, 0], [5, -8], [7, 2]]], dtype=np.float64)
    assert oracle.window_mean(x, 2).tolist() == [[[3.0, -4.0], [7.0, 2.0]]]
    assert oracle.window_sigma(x, 2).tolist() == [[3.0, 0.0]]  # (2 + 4) / 2
    assert oracle.score(x, 2) == 1.5


def test_single_element() -> None:
    x = one_channel([[-3]])
    assert oracle.window_mean(x, 2).tolist() == [[[-3.0]]]
    assert oracle.score(x, 2) == 0.0


def test_two_pass_survives_a_large_offset() -> None:
    # 1e9 + {0,2,2,0}: mean 1e9 + 1, sigma exactly 1; E[v^2] - E[v]^2 loses it, 1e18 having an ulp of 128
    x = one_channel([[0, 2], [2, 0]]) + 1e9
    assert oracle.window_sigma(x, 2).tolist() == [[1.0]]


def test_input_becomes_float64_first() -> None:
    # 60000 + 60000 overflows float16 (largest 65504), and 127 + 127 overflows int8
    half = np.full((1, 2, 1), 60000, dtype=np.float16)
    assert oracle.window_mean(half, 2).dtype == np.float64
    assert oracle.window_mean(half, 2).tolist() == [[[60000.0]]]
    assert oracle.window_mean(np.array([[[127], [127]]], dtype=np.int8), 2).tolist() == [[[127.0]]]
    # float16 0 and 512: squared deviation 256^2 = 65536 overflows float16; sigma 256
    assert oracle.window_sigma(np.array([[[0], [512]]], dtype=np.float16), 2).tolist() == [[256.0]]


def test_input_is_not_changed() -> None:
    x = NINE.copy()
    oracle.window_mean(x, 2)
    oracle.window_sigma(x, 2)
    np.testing.assert_array_equal(x, NINE)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3], 3.0),  # ceil(1/4) = 1
        ([1, 4, 2, 3], 4.0),  # ceil(4/4) = 1
        ([1, 5, 2, 3, 4], 4.5),  # ceil(5/4) = 2: (5 + 4) / 2
        ([8, 1, 2, 7, 3, 4, 6, 5], 7.5),  # ceil(8/4) = 2: (8 + 7) / 2
        ([9, 1, 2, 7, 3, 4, 6, 5, 8], 8.0),  # ceil(9/4) = 3: (9 + 8 + 7) / 3
    ],
)
def test_top_quarter(values: list[float], expected: float) -> None:
    assert oracle.top_quarter(np.array([values], dtype=np.float64)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3], 3.0),  # position 0
        ([2, 1], 1.9),  # position 0.9: 1 + 0.9 * 1
        ([10, 0, 30, 20], 27.0),  # position 2.7: 20 + 0.7 * 10
        ([0, 0, 0, 0, 5], 3.0),  # position 3.6: 0 + 0.6 * 5
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 9.0),  # position 9 exactly
    ],
)
def test_p90(values: list[float], expected: float) -> None:
    assert oracle.p90(np.array([values], dtype=np.float64)) == pytest.approx(expected, abs=TOL)


def test_aggregates_of_a_two_dimensional_map() -> None:
    sigma = oracle.window_sigma(NINE, 2)  # sorted 0, 0.5, 1.5, sqrt(2.5)
    assert oracle.top_quarter(sigma) == pytest.approx(1.5811388300841898, abs=TOL)
    # position 2.7: 1.5 + 0.7 * 0.0811388300841898
    assert oracle.p90(sigma) == pytest.approx(1.5567971810589329, abs=TOL)


def test_aggregates_carry_nan() -> None:
    assert math.isnan(oracle.top_quarter([0.0] * 9 + [NAN]))
    assert math.isnan(oracle.p90([NAN] + [0.0] * 19))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_pictures(bad: float) -> None:
    x = one_channel([[1, 1, 2, 4]])
    assert oracle.is_finite(x)
    x[0, 0, 0] = bad
    assert not oracle.is_finite(x)
    sigma = oracle.window_sigma(x, 2)
    assert math.isnan(sigma[0, 0])
    assert sigma[0, 1] == 1.0  # only its own window: {2,4} mean 3 sigma 1
    assert oracle.window_mean(x, 2)[0, 1, 0] == 3.0
    assert math.isnan(oracle.score(x, 2))


def test_is_finite_looks_at_every_channel() -> None:
    x = np.zeros((2, 3, 2))
    x[1, 2, 1] = NAN
    assert oracle.is_finite(x) is False
    assert oracle.is_finite(np.zeros((2, 3, 2))) is True


@pytest.mark.parametrize(
    ("scores", "thresholds", "candidates", "expected"),
    [
        ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [2, 3, 4], 4),  # all pass: the largest
        ([0.1, 0.2, 0.6], [0.5, 0.5, 0.5], [2, 3, 4], 3),
        ([0.9, 0.9, 0.3], [0.5, 0.5, 0.5], [2, 3, 4], 4),  # the smaller ones failing does not matter
        ([0.3, 0.1, 0.2], [0.5, 0.5, 0.5], [4, 2, 3], 4),  # order does not matter
        ([0.3, 0.3], [0.2, 0.4], [4, 2], 2),  # each against its own threshold
        ([0.5], [0.5], [2], 1),  # strictly under
        ([0.9, 0.9], [0.5, 0.5], [2, 4], 1),  # none passes
        ([0.0, 0.9], [0.5, 0.5], [1, 2], 1),  # 1 may itself be a candidate
        ([], [], [], 1),
        ([NAN, 0.1], [0.5, 0.5], [4, 2], 2),  # NaN never passes a finite threshold
        ([NAN], [1e308], [4], 1),
        ([NAN], [INF], [4], 4),  # +inf always passes
        ([INF], [INF], [4], 4),
        ([1e308], [INF], [4], 4),
        ([INF], [1e308], [4], 1),
        ([0.0], [-INF], [4], 1),  # -inf never passes
        ([-INF], [-INF], [4], 1),
        ([NAN], [-INF], [4], 1),
    ],
)
def test_decide(scores: Sequence[float], thresholds: Sequence[float], candidates: Sequence[int], expected: int) -> None:
    assert oracle.decide(scores, thresholds, candidates) == expected


def test_decide_needs_parallel_sequences() -> None:
    with pytest.raises(ValueError, match="zip"):
        oracle.decide([0.1], [0.5, 0.5], [2, 4])


def test_tokens() -> None:
    # 24 x 24, the figures every reader knows
    assert [oracle.tokens(24, 24, s) for s in (1, 2, 3, 4, 6, 8, 12)] == [576, 144, 64, 36, 16, 9, 4]
    assert oracle.tokens(3, 3, 2) == 4  # 2 * 2
    assert oracle.tokens(5, 7, 3) == 6  # ceil(5/3) = 2, ceil(7/3) = 3
    assert oracle.tokens(1, 9, 4) == 3
    assert oracle.tokens(2, 3, 100) == 1


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [(576, 1), (575, 2), (144, 2), (143, 3), (64, 3), (63, 4), (36, 4), (35, None), (0, None)],
)
def test_smallest_fitting(max_tokens: int, expected: int | None) -> None:
    # 576, 144, 64, 36 tokens at 1, 2, 3, 4; candidates in no order
    assert oracle.smallest_fitting(24, 24, [3, 1, 4, 2], max_tokens) == expected


def test_smallest_fitting_looks_at_the_candidates_only() -> None:
    assert oracle.smallest_fitting(24, 24, [2, 4], 1000) == 2  # 1 would fit, but is no candidate
    assert oracle.smallest_fitting(24, 24, [], 1000) is None


def test_wrong_shapes_and_factors_are_refused() -> None:
    for wrong in (np.zeros((2, 2)), np.zeros((0, 2, 1)), np.zeros((1, 2, 2, 1))):
        with pytest.raises(ValueError, match="shape"):
            oracle.window_sigma(wrong, 2)
    with pytest.raises(ValueError, match="factor"):
        oracle.window_mean(NINE, 0)
    with pytest.raises(ValueError, match="window"):
        oracle.top_quarter([])
