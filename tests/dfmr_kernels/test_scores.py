import math

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfmr_kernels.scores import AGGREGATES, RELATIVE, aggregate_by_name

ORACLES = {
    "mean": lambda sigma: sigma.mean(),
    "top-quarter": oracle.top_quarter,
    "median": oracle.median,
    "p90": oracle.p90,
    "max": oracle.largest,
    "peak": oracle.peak,
}


def test_every_aggregate_has_an_oracle() -> None:
    assert set(AGGREGATES) == set(ORACLES)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(AGGREGATES)), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_aggregates_are_the_oracles(name: str, height: int, width: int, seed: int) -> None:
    sigma = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    scores = AGGREGATES[name](sigma)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx([float(ORACLES[name](one)) for one in sigma.double().numpy()], rel=1e-5)


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_a_single_window_is_its_own_score_unless_it_is_compared_with_its_picture(name: str) -> None:
    expected = 0.0 if AGGREGATES[name] in RELATIVE else 0.25
    assert AGGREGATES[name](torch.tensor([[[0.25]]])).tolist() == [expected]


def test_the_peak_sees_a_small_number_and_does_not_see_even_noise() -> None:
    page, noise = torch.full((1, 8, 8), 0.1), 1 + 0.05 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    page[0, 3, 3] = 1.0
    assert AGGREGATES["mean"](page) < AGGREGATES["mean"](noise)
    assert AGGREGATES["peak"](page) > 10 * AGGREGATES["peak"](noise)


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_nan_anywhere_makes_the_score_nan(name: str) -> None:
    sigma = torch.zeros(1, 3, 3)
    sigma[0, 1, 2] = math.nan
    assert AGGREGATES[name](sigma).isnan().all()


@pytest.mark.parametrize("name", ["top-quarter", "p90", "max", "peak"])
def test_robust_aggregates_see_a_small_number_on_a_blank_page(name: str) -> None:
    page = torch.zeros(1, 8, 8)
    page[0, 3, :] = 1.0
    assert AGGREGATES["mean"](page).item() == 0.125
    assert AGGREGATES[name](page).item() >= 0.5


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'best'.*max, mean, median, p90, peak, top-quarter"):
        aggregate_by_name("best")
