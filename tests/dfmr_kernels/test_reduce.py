from math import inf, isnan, nan

import oracle
import pytest
import torch
from comparing import DTYPES, FACTORS, features
from hypothesis import given, settings
from hypothesis import strategies as st

from dfmr_kernels import pyramid, reduce, thresholds
from dfmr_kernels.scores import AGGREGATES

CANDIDATES = (1, 2, 3)


def only(factor: int, candidates: tuple[int, ...] = CANDIDATES) -> list[float]:
    """Thresholds that choose `factor`."""
    return [inf if s == factor else -inf for s in candidates]


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_tokens_are_packed_picture_after_picture_in_row_major_order(dtype: torch.dtype) -> None:
    batch = features(3, 5, 7, 4, dtype=dtype)
    reduced = reduce(batch, CANDIDATES, [only(2), only(1), only(3)])
    maps = pyramid(batch, CANDIDATES).maps
    expected = torch.cat([maps[2][0].reshape(-1, 4), batch[1].reshape(-1, 4), maps[3][2].reshape(-1, 4)])
    assert torch.equal(reduced.features, expected)
    assert reduced.features.dtype == dtype
    assert reduced.grids == [(3, 4), (5, 7), (2, 3)]
    assert reduced.factors == [2, 1, 3]
    assert reduced.finite == [True, True, True]


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 999), tau=st.floats(0, 2))
def test_scores_and_decisions_are_the_oracles(height: int, width: int, seed: int, tau: float) -> None:
    batch = features(2, height, width, 5, seed=seed)
    rows = [thresholds((height, width), CANDIDATES, tau)] * 2
    reduced = reduce(batch, CANDIDATES, rows)
    for index, picture in enumerate(batch.double().numpy()):
        scores = reduced.scores[index].tolist()
        assert scores == pytest.approx([oracle.score(picture, s) for s in CANDIDATES], rel=1e-5, abs=1e-6)
        assert reduced.factors[index] == oracle.decide(scores, rows[index], CANDIDATES)
    assert len(reduced.features) == sum(rows * columns for rows, columns in reduced.grids)


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_scores_follow_the_named_aggregate(name: str) -> None:
    batch = features(2, 9, 9, 5)
    reduced = reduce(batch, CANDIDATES, [only(1)] * 2, aggregate=name)
    sigmas = pyramid(batch, CANDIDATES).sigmas
    expected = torch.stack([AGGREGATES[name](sigmas[s]) for s in CANDIDATES], dim=1)
    torch.testing.assert_close(reduced.scores, expected)
    assert reduced.scores.device.type == "cpu"


def test_scores_follow_the_order_of_the_candidates() -> None:
    batch = features(1, 6, 6, 3)
    forwards, backwards = reduce(batch, (1, 2, 3), [only(2)]), reduce(batch, (3, 2, 1), [only(2)])
    assert torch.equal(forwards.scores, backwards.scores.flip(1))
    assert torch.equal(forwards.features, backwards.features)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_bad_picture_is_reported_and_leaves_its_batch_mates_alone(bad: float) -> None:
    batch = features(3, 6, 6, 4)
    rows = [only(3), only(1), only(2)]
    clean = reduce(batch[[0, 2]], CANDIDATES, [rows[0], rows[2]])
    batch[1, 2, 3, 0] = bad
    reduced = reduce(batch, CANDIDATES, rows)
    assert reduced.finite == [True, False, True]
    assert reduced.grids == [(2, 2), (0, 0), (3, 3)]
    assert reduced.factors == [3, 0, 2]
    assert torch.equal(reduced.features, clean.features)
    assert torch.equal(reduced.scores[[0, 2]], clean.scores)
    assert all(isnan(score) for score in reduced.scores[1].tolist())


def test_a_batch_of_bad_pictures_keeps_no_tokens() -> None:
    reduced = reduce(torch.full((2, 4, 4, 3), nan), CANDIDATES, [only(2)] * 2)
    assert reduced.features.shape == (0, 3)
    assert reduced.factors == [0, 0]


def test_an_empty_batch_is_reduced_to_nothing() -> None:
    reduced = reduce(features(0, 4, 4, 3, dtype=torch.float16), CANDIDATES, [])
    assert reduced.features.shape == (0, 3)
    assert reduced.features.dtype == torch.float16
    assert reduced.scores.shape == (0, 3)
    assert (reduced.grids, reduced.factors, reduced.finite) == ([], [], [])


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_a_picture_is_decided_and_valued_alike_in_any_batch(name: str) -> None:
    batch = features(4, 24, 24, 32, dtype=torch.bfloat16)
    rows = [thresholds((24, 24), FACTORS, 0.55)] * 4
    together = reduce(batch, FACTORS, rows, aggregate=name)
    alone = [reduce(batch[index : index + 1], FACTORS, rows[:1], aggregate=name) for index in range(4)]
    assert torch.equal(together.features, torch.cat([one.features for one in alone]))
    assert torch.equal(together.scores, torch.cat([one.scores for one in alone]))
    assert together.factors == [one.factors[0] for one in alone]


def test_bad_arguments_are_refused_with_the_reason() -> None:
    batch = features(2, 4, 4, 3)
    rows = [only(1)] * 2
    with pytest.raises(ValueError, match=r"got shape \(4, 4, 3\)"):
        reduce(batch[0], CANDIDATES, rows)
    with pytest.raises(ValueError, match=r"got shape \(2, 0, 4, 3\)"):
        reduce(batch[:, :0], CANDIDATES, rows)
    with pytest.raises(ValueError, match="float64"):
        reduce(batch.double(), CANDIDATES, rows)
    with pytest.raises(ValueError, match="factor 1"):
        reduce(batch, (2, 3), [[inf, inf]] * 2)
    with pytest.raises(ValueError, match="2 pictures, 1 rows"):
        reduce(batch, CANDIDATES, rows[:1])
    with pytest.raises(ValueError, match="picture 1: need 3, one per candidate, got 2"):
        reduce(batch, CANDIDATES, [only(1), [inf, inf]])
    with pytest.raises(ValueError, match="picture 0 contain NaN"):
        reduce(batch, CANDIDATES, [[inf, nan, 0.5], only(1)])
    with pytest.raises(ValueError, match="unknown aggregate 'best'"):
        reduce(batch, CANDIDATES, rows, aggregate="best")
