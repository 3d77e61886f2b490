from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfmr_kernels.decide import tokens_after
from dfmr_kernels.tiling import MAX_SIDE, MAX_WINDOWS, plan_passes, traffic

USUAL = (2, 3, 4, 6, 8, 12)
factor_sets = st.lists(st.integers(2, MAX_SIDE), min_size=1, max_size=8, unique=True)


@given(factor_sets)
def test_every_factor_is_in_one_pass_whose_tiles_hold_its_windows_whole(factors: list[int]) -> None:
    passes = plan_passes(factors)
    assert sorted(s for plan in passes for s in plan.factors) == sorted(factors)
    for plan in passes:
        assert all(plan.side % s == 0 for s in plan.factors)
        assert plan.side <= MAX_SIDE
        assert sum(plan.side // s for s in plan.factors) <= MAX_WINDOWS


@pytest.mark.parametrize("factors", [USUAL, (2,), (2, 4, 8, 16, 32), (3, 9, 27)])
def test_the_usual_sets_read_the_map_once(factors: Sequence[int]) -> None:
    assert len(plan_passes(factors)) == 1
    assert traffic((27, 27), 1152, 2, factors).map_read == 27 * 27 * 1152 * 2


def test_factors_that_share_no_tile_read_the_map_again() -> None:
    assert [plan.factors for plan in plan_passes((2, 3, 5, 7))] == [(3, 7), (2, 5)]
    assert traffic((24, 24), 1024, 2, (2, 3, 5, 7)).map_read == 2 * 24 * 24 * 1024 * 2


@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 99), factors=factor_sets)
def test_every_window_is_written_once(height: int, width: int, channels: int, factors: list[int]) -> None:
    windows = sum(tokens_after((height, width), s) for s in factors)
    assert traffic((height, width), channels, 2, factors).outputs_written == windows * (channels * 2 + 4)


def test_scratch_is_a_few_percent_of_the_floor() -> None:
    counted = traffic((24, 24), 1024, 2, USUAL)
    assert counted.floor <= counted.moved <= 1.05 * counted.floor
