"""Blocks with factors of their own: which there are, what they keep, in which order; against loops over blocks."""

from math import inf, lcm

import numpy as np
import pytest
import torch
from comparing import features
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfmr_kernels import AGGREGATES, Choice, Layout, pyramid, select
from dfmr_kernels.choices import Options, extent, layout, options, split_windows, squeeze
from dfmr_kernels.regions import block_factors, block_scores, blocked, pool, tokens_of, touched, whole
from dfmr_kernels.scores import RELATIVE

FACTORS = (1, 2, 3, 4, 6)
GRIDS = [(24, 24), (27, 27), (13, 10), (5, 7), (1, 9)]


def blocks_of(grid: tuple[int, int], block: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each block, in the order of blocks."""
    return [
        (slice(top, min(top + block, grid[0])), slice(left, min(left + block, grid[1])))
        for top in range(0, grid[0], block)
        for left in range(0, grid[1], block)
    ]


def kept_by_loops(picture: torch.Tensor, block: int, factors: tuple[int, ...]) -> torch.Tensor:
    """Tokens of a divided map, window by window."""
    tokens = []
    for (rows, columns), s in zip(blocks_of(tuple(picture.shape[:2]), block), factors, strict=True):
        cells = picture[rows, columns]
        for down in range(0, cells.shape[0], s):
            for across in range(0, cells.shape[1], s):
                tokens.append(cells[down : down + s, across : across + s].double().mean((0, 1)))
    return torch.stack(tokens).float()


@pytest.mark.parametrize(
    ("grid", "factors", "chosen"),
    [
        ((24, 24), (1, 2, 3, 4, 6, 8), (1, 2, 4)),
        ((24, 24), (1, 2, 4, 8), (1, 2, 4, 8)),
        ((24, 24), (6, 3, 2, 1), (1, 2, 3, 6)),
        ((24, 24), (2, 3, 8), (2,)),
        ((27, 27), (1, 2, 3, 4, 6, 8), (1, 2, 4, 8)),
        ((16, 16), (1, 2, 3, 4, 6, 8), (1, 2, 4)),
        ((24, 24), (1,), (1,)),
        ((24, 24), (8,), (8,)),
        ((1, 1), (1, 2), (1,)),
    ],
)
def test_factors_that_would_make_too_few_blocks_give_way_to_a_chain(
    grid: tuple[int, int], factors: tuple[int, ...], chosen: tuple[int, ...]
) -> None:
    assert block_factors(grid, factors) == chosen


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", [4, 6, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_stand_block_by_block_and_row_by_row_inside(
    grid: tuple[int, int], block: int, dtype: torch.dtype
) -> None:
    dice = np.random.default_rng(block)
    usable = [s for s in FACTORS if block % s == 0]
    factors = tuple(dice.choice(usable, len(blocks_of(grid, block))).tolist())
    batch = features(1, *grid, 3, dtype=dtype)
    maps = {s: pooled[0] for s, pooled in pyramid(batch, FACTORS).maps.items()}
    divided = Layout(block, factors)
    kept = pool(maps, grid, divided)
    assert len(kept) == tokens_of(grid, divided)
    torch.testing.assert_close(kept.float(), kept_by_loops(batch[0], block, factors), rtol=2**-8, atol=1e-5)


def test_a_map_with_one_factor_throughout_is_not_divided() -> None:
    assert blocked(4, np.full(36, 2)) == whole(2)
    assert blocked(4, np.array([2, 1])) == Layout(4, (2, 1))
    assert (whole(2).factor, Layout(4, (2, 1)).factor) == (2, None)
    assert len({whole(2).name, whole(1).name, Layout(4, (2, 1)).name, Layout(8, (2, 1)).name}) == 4


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("aggregate", [name for name, score in AGGREGATES.items() if score not in RELATIVE])
def test_a_blocks_score_is_that_of_the_block_cut_out(grid: tuple[int, int], aggregate: str) -> None:
    batch = features(1, *grid, 5)
    score = AGGREGATES[aggregate]
    windows = {s: values[0] for s, values in pyramid(batch, (1, 2, 3, 6)).sigmas.items()}
    found = block_scores(windows, grid, 6, score)
    for index, (rows, columns) in enumerate(blocks_of(grid, 6)):
        alone = pyramid(batch[:, rows, columns], (1, 2, 3, 6)).sigmas
        expected = [float(score(alone[s])[0]) for s in windows]
        np.testing.assert_allclose(found[index], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_touched_blocks_are_those_with_a_cell(grid: tuple[int, int]) -> None:
    cells = np.random.default_rng(0).random(grid) < 0.1
    assert touched(cells, 4).tolist() == [bool(cells[rows, columns].any()) for rows, columns in blocks_of(grid, 4)]


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[Choice]]:
    """Pictures of one size, each to be pooled in a way of its own."""
    grid = draw(st.sampled_from(GRIDS[1:4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch = features(draw(st.integers(1, 4)), *grid, 4, seed=int(rng.integers(1000)))
    batch *= torch.from_numpy(rng.random((len(batch), *grid, 1)) ** 3).float()
    choices = []
    for _ in batch:
        usable = block_factors(grid, FACTORS) if (regions := rng.random() < 0.5) else FACTORS
        tau = float(rng.choice([0.0, 0.1, 0.3, 9.0]))
        thresholds = tuple(inf if s == 1 else tau if s in usable else -inf for s in FACTORS)
        cells = (rng.random(grid) < rng.choice([0, 0.02, 0.3])).tobytes() if rng.random() < 0.5 else None
        choices.append(Choice(thresholds, lcm(*usable) if regions and len(usable) > 1 else 0, cells))
    return batch, choices


Batch = tuple[torch.Tensor, list[Choice]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches())
def test_decisions_do_not_depend_on_batch_mates(batch: Batch) -> None:
    pictures, choices = batch
    together = select(pyramid(pictures, FACTORS), FACTORS, choices, [False] * len(choices))
    alone = [select(pyramid(p[None], FACTORS), FACTORS, [c], [False]) for p, c in zip(pictures, choices, strict=True)]
    assert torch.equal(together.features, torch.cat([one.features for one in alone]))
    for mate, one in zip(together.pictures, alone, strict=True):
        assert mate is not None
        assert one.pictures[0] is not None
        assert mate.layouts == one.pictures[0].layouts
        assert torch.equal(mate.windows, one.pictures[0].windows)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches())
def test_protected_cells_are_kept_as_they_are(batch: Batch) -> None:
    pictures, choices = batch
    for picture, choice in zip(pictures, choices, strict=True):
        grid = (picture.shape[0], picture.shape[1])
        kept = select(pyramid(picture[None], FACTORS), FACTORS, [choice], [False]).features
        for cell in picture[torch.from_numpy(choice.cells(grid).copy())] if choice.protected else ():
            assert (kept == cell).all(1).any()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches(), st.floats(0, 1))
def test_a_decision_taken_elsewhere_finds_what_it_needs(batch: Batch, share: float) -> None:
    pictures, choices = batch
    grid: tuple[int, int] = (pictures.shape[1], pictures.shape[2])
    chosen = select(pyramid(pictures, FACTORS), FACTORS, choices, [True] * len(choices))
    found: list[Options] = []
    maps: list[dict[int, torch.Tensor]] = []
    start = 0
    for picture, choice in zip(chosen.pictures, choices, strict=True):
        assert picture is not None
        windows = split_windows(picture.windows, grid, FACTORS)
        found.append(options(choice, grid, FACTORS, picture.scores, windows, AGGREGATES["mean"]))
        maps.append({})
        for one in picture.layouts:
            length = tokens_of(grid, one)
            maps[-1][one.factors[0]] = chosen.features[start : start + length]
            start += length
    fewest = sum(extent(choice, grid, FACTORS).fewest for choice in choices)
    budget = fewest + int(share * (sum(one.kept for one in found) + 1 - fewest))
    before = select(pyramid(pictures, FACTORS), FACTORS, choices, [False] * len(choices))
    total = 0
    for picture, one, choice, levels, old in zip(
        pictures, squeeze(found, budget), choices, maps, before.pictures, strict=True
    ):
        squeezed = layout(choice, grid, FACTORS, one.chosen)
        tokens = pool(levels, grid, squeezed)
        assert len(tokens) == one.kept == tokens_of(grid, squeezed)
        total += len(tokens)
        side = squeezed.block or squeezed.factors[0]
        factors = squeezed.factors if squeezed.block else squeezed.factors * len(blocks_of(grid, side))
        torch.testing.assert_close(tokens, kept_by_loops(picture, side, factors), rtol=1e-4, atol=1e-4)
        if budget >= sum(f.kept for f in found):
            assert old is not None
            assert squeezed == old.layouts[0]
    assert total <= budget


def test_a_blocks_peak_stands_above_the_whole_pictures_mean() -> None:
    windows = {2: torch.arange(16, dtype=torch.float32).view(4, 4)}
    found = block_scores(windows, (8, 8), 4, AGGREGATES["peak"])
    assert found[:, 0].tolist() == [5 - 7.5, 7 - 7.5, 13 - 7.5, 15 - 7.5]
