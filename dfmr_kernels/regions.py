"""A pooling factor for each block of a feature map: which blocks there are, and which tokens they leave, in what order.

A map (H, W) is cut into blocks of `block` x `block` cells, row-major from the top left corner; those at the right and
bottom edge are cut off. Every factor that is used divides `block`, so no window straddles two blocks, and a block's
windows at factor s are windows of the whole map pooled by s. Kept tokens stand block after block in that order, and
row-major inside each block. A map that takes one factor throughout is not divided: its windows are row-major.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import lcm
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmr_kernels.decide import Grid, grid_after, tokens_after
from dfmr_kernels.scores import RELATIVE, Aggregate

FEWEST_BLOCKS = 3
"""Along the shorter side of a map, where the factors are taken as they are asked for."""

USUAL_BLOCKS = 4
"""Along the shorter side of a map, where some of the factors have to be left out anyway."""


class Layout(NamedTuple):
    """Which pooling factor applies where.

    Attributes:
        block: side of the blocks in cells; 0 where one factor applies to the whole map.
        factors: one for each block, row-major; exactly one where `block` is 0.
    """

    block: int
    factors: tuple[int, ...]

    @property
    def factor(self) -> int | None:
        """The factor of the whole map; None where there are several."""
        return None if self.block else self.factors[0]

    @property
    def name(self) -> str:
        """Text that is the same for two layouts of one map exactly if they are."""
        return f"{self.block}:{bytes(self.factors).hex()}" if self.block else str(self.factors[0])


def whole(s: int) -> Layout:
    """One factor for the whole map."""
    return Layout(0, (s,))


def blocked(block: int, factors: NDArray[np.int64]) -> Layout:
    """A layout from one factor for each block; undivided where all are the same."""
    first = int(factors[0])
    return whole(first) if (factors == first).all() else Layout(block, tuple(factors.tolist()))


def block_factors(grid: Grid, factors: Sequence[int]) -> tuple[int, ...]:
    """The factors among which the blocks of a map can choose, ascending; their least common multiple is the block.

    All of `factors`, if blocks of their least common multiple divide the shorter side of `grid` into at least
    `FEWEST_BLOCKS`. Otherwise a chain: the smallest, then in ascending order each that is a multiple of the one before
    and leaves at least `USUAL_BLOCKS`. Of 1, 2, 3, 4, 6, 8 on 24 x 24 cells that is 1, 2, 4.
    """
    ordered = sorted(factors)
    if -(-min(grid) // lcm(*ordered)) >= FEWEST_BLOCKS:
        return tuple(ordered)
    chain = ordered[:1]
    for s in ordered[1:]:
        if s % chain[-1] == 0 and -(-min(grid) // s) >= USUAL_BLOCKS:
            chain.append(s)
    return tuple(chain)


@lru_cache(maxsize=64)
def block_tokens(grid: Grid, block: int, factors: tuple[int, ...]) -> NDArray[np.int64]:
    """Tokens of each block at each factor, (blocks, factors); what a factor that does not divide `block` has means
    nothing."""
    heights, widths = (np.minimum(block, side - np.arange(0, side, block)) for side in grid)
    counts = [np.multiply.outer(-(-heights // s), -(-widths // s)).ravel() for s in factors]
    return np.stack(counts, axis=1).astype(np.int64)


def touched(cells: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    """Which blocks hold any of the cells (H, W): (blocks,) row-major."""
    rows = np.logical_or.reduceat(cells, np.arange(0, cells.shape[0], block), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, cells.shape[1], block), axis=1).ravel()


def tokens_of(grid: Grid, layout: Layout) -> int:
    """Visual tokens that a layout leaves of a map."""
    if not layout.block:
        return tokens_after(grid, layout.factors[0])
    used = tuple(sorted(set(layout.factors)))
    columns = np.searchsorted(used, layout.factors)
    counts = block_tokens(grid, layout.block, used)
    return int(counts[np.arange(len(counts)), columns].sum())


def block_scores(windows: Mapping[int, Tensor], grid: Grid, block: int, score: Aggregate) -> NDArray[np.float64]:
    """Each block's score at each factor, (blocks, factors): the aggregate over the windows inside the block.

    Where the aggregate compares with a level of the picture, that level is the whole picture's.

    Args:
        windows: s -> (ceil(H/s), ceil(W/s)) float32 window values on the CPU, for factors that divide `block`.
        grid: (H, W).
        block: side of the blocks.
        score: maps (n, h, w) window values to (n,) scores.
    """
    rows, columns = grid_after(grid, block)
    scores = np.empty((rows, columns, len(windows)))
    over_block, level = RELATIVE.get(score, (score, None))
    for column, (s, values) in enumerate(windows.items()):
        side = block // s
        if level is not None:
            values = values - level(values[None])
        # Blocks that are cut off have other numbers of windows, so at most four groups of equal blocks are scored.
        for down, lines, height in _groups(values, side):
            for across, part, width in _groups(lines.T, side):
                split = part.T.reshape(-1, height, len(part) // width, width).permute(0, 2, 1, 3)
                scored = over_block(split.flatten(0, 1).contiguous())
                scores[down, across, column] = scored.view(split.shape[:2]).numpy()
    return scores.reshape(rows * columns, -1)


def _groups(values: Tensor, side: int) -> list[tuple[slice, Tensor, int]]:
    """Along the first axis: the blocks of full side, and the one that is cut off, each with its lines and side."""
    full, rest = divmod(len(values), side)
    groups = [(slice(0, full), values[: full * side], side), (slice(full, full + 1), values[full * side :], rest)]
    return [group for group in groups if group[2] and len(group[1])]


def pool(maps: Mapping[int, Tensor], grid: Grid, layout: Layout) -> Tensor:
    """The tokens (n, D) that a layout keeps, in its order, from the maps pooled as a whole.

    Args:
        maps: s -> (ceil(H/s), ceil(W/s), D) or (ceil(H/s) * ceil(W/s), D), for every factor that the layout uses.
        grid: (H, W).
        layout: what to keep.
    """
    channels = maps[layout.factors[0]].shape[-1]
    if not layout.block:
        return maps[layout.factors[0]].reshape(-1, channels)
    used = sorted(set(layout.factors))
    together = torch.cat([maps[s].reshape(-1, channels) for s in used])
    index = torch.from_numpy(order(grid, layout))
    if together.is_cuda:  # a copy from pageable memory would wait for the device
        index = index.pin_memory().to(together.device, non_blocking=True)
    return together.index_select(0, index)


def order(grid: Grid, layout: Layout) -> NDArray[np.int64]:
    """Places (n,) of a divided layout's tokens among the flat maps of its factors, ascending, one after another."""
    factors = np.asarray(layout.factors)
    places, keys = [], []
    offset = 0
    for s in sorted(set(layout.factors)):
        block_of, key = _window_order(grid, layout.block, s)
        kept = np.flatnonzero(factors[block_of] == s)
        places.append(kept + offset)
        keys.append(key[kept])
        offset += len(block_of)
    return np.concatenate(places)[np.argsort(np.concatenate(keys), kind="stable")]


@lru_cache(maxsize=64)
def _window_order(grid: Grid, block: int, s: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each window of the map pooled by s, row-major: its block, and a key that sorts windows of any factor."""
    rows, columns = grid_after(grid, s)
    side = block // s
    row, column = np.divmod(np.arange(rows * columns), columns)
    block_of = row // side * grid_after(grid, block)[1] + column // side
    return block_of, block_of * block * block + row % side * side + column % side
