"""What may become of a picture, and what does: thresholds, regions, protected cells and limits, to a `Layout`.

The same code decides on the worker, where the maps are, and where only a picture's window values are known.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfmr_kernels.budget import choose
from dfmr_kernels.decide import Grid, grid_after, tokens_after
from dfmr_kernels.regions import Layout, block_scores, block_tokens, blocked, tokens_of, touched, whole
from dfmr_kernels.scores import Aggregate

_LARGEST_LOSS = 1e30


class Choice(NamedTuple):
    """How one picture may be pooled.

    Attributes:
        thresholds: one per candidate, as `decide.thresholds` builds them.
        block: side of the blocks that are decided on, a multiple of every factor that may be chosen; 0 to decide on
            the picture as a whole.
        protected: H * W bytes, row-major, 1 for every cell that must not be pooled; None if there are none. Blocks
            that hold any keep factor 1. Where the picture is decided on as a whole, its windows are the blocks.
        max_tokens: the most tokens that the picture may keep; None for no limit but that of the thresholds.
    """

    thresholds: tuple[float, ...]
    block: int = 0
    protected: bytes | None = None
    max_tokens: int | None = None

    def cells(self, grid: Grid) -> NDArray[np.bool_] | None:
        """The protected cells, (H, W)."""
        return None if self.protected is None else np.frombuffer(self.protected, np.bool_).reshape(grid)


class Options(NamedTuple):
    """The items of one picture, itself or its blocks, with one column for each candidate factor.

    Attributes:
        tokens: (items, F) int64 what each factor keeps.
        losses: (items, F) float64 the score times the cells that may be pooled.
        open: (items, F) bool the factors that an item may yet be pooled by: the chosen one and those that keep less.
        chosen: (items,) the column that is chosen.
    """

    tokens: NDArray[np.int64]
    losses: NDArray[np.float64]
    open: NDArray[np.bool_]
    chosen: NDArray[np.intp]

    @property
    def kept(self) -> int:
        """Tokens that the chosen factors keep."""
        return int(np.take_along_axis(self.tokens, self.chosen[:, None], 1).sum())


class Extent(NamedTuple):
    """What a choice leaves possible, whatever the picture scores.

    Attributes:
        tokens: (items, F) int64 what each factor keeps.
        allowed: (items, F) bool whether the factor may be chosen.
    """

    tokens: NDArray[np.int64]
    allowed: NDArray[np.bool_]

    @property
    def fewest(self) -> int:
        """The fewest tokens that the picture can keep."""
        return int(np.where(self.allowed, self.tokens, np.iinfo(np.int64).max).min(1).sum())

    @property
    def most(self) -> int:
        """The most tokens that the picture can keep."""
        return int(np.where(self.allowed, self.tokens, 0).max(1).sum())


@lru_cache(maxsize=256)
def extent(choice: Choice, grid: Grid, candidates: tuple[int, ...]) -> Extent:
    """What a choice leaves possible on a map of `grid` = (H, W)."""
    allowed = np.array([limit > -inf for limit in choice.thresholds])[None]
    if not choice.block:
        tokens = np.array([[tokens_of(grid, _layout(choice, grid, s)) for s in candidates]], np.int64)
        # With protected windows a larger factor may keep more tokens, so the limit has to name those that it allows.
        fitting = allowed if choice.max_tokens is None else allowed & (tokens <= choice.max_tokens)
        return Extent(tokens, fitting if fitting.any() else allowed)
    tokens = block_tokens(grid, choice.block, candidates)
    allowed = np.repeat(allowed, len(tokens), axis=0)
    if (cells := choice.cells(grid)) is not None:
        allowed[touched(cells, choice.block)] = np.array(candidates) == 1
    return Extent(tokens, allowed)


def options(
    choice: Choice,
    grid: Grid,
    candidates: tuple[int, ...],
    scores: Sequence[float],
    windows: Mapping[int, Tensor],
    score: Aggregate,
) -> Options:
    """What the thresholds, and then the limit, choose for one picture, and what it may still be pooled to.

    Args:
        choice: how the picture may be pooled.
        grid: (H, W) of its map.
        candidates: distinct pooling factors with 1 among them.
        scores: one per candidate, of the picture as a whole.
        windows: s -> (ceil(H/s), ceil(W/s)) float32 window values on the CPU, for every candidate.
        score: the aggregate that makes a block's score of the windows inside it.

    Raises:
        ValueError: the limit is below the fewest possible tokens.
    """
    tokens, allowed = extent(choice, grid, candidates)
    factors = np.array(candidates)
    limits = np.array(choice.thresholds)
    cells = choice.cells(grid)
    if choice.block:
        usable = tuple(s for s in candidates if choice.block % s == 0)
        measured = np.zeros(tokens.shape)
        inside = {s: windows[s] for s in usable}
        measured[:, np.isin(factors, usable)] = block_scores(inside, grid, choice.block, score)
        sizes = block_tokens(grid, choice.block, (1,))
    else:
        measured = np.array([scores])
        sizes = np.array([[grid[0] * grid[1] if cells is None else cells.size - cells.sum()]])
    passing = allowed & ((limits == inf) | (measured < limits))
    # Larger factors come first, unless protected windows make one of them keep more tokens than a smaller one.
    order = factors if choice.block or cells is None else factors - tokens * (factors.max() + 1)
    finest = np.where(allowed, order, order.max() + 1).argmin(1)
    chosen = np.where(passing.any(1), np.where(passing, order, order.min() - 1).argmax(1), finest)
    losses = np.nan_to_num(measured * sizes, posinf=_LARGEST_LOSS).clip(0, _LARGEST_LOSS)
    found = _chosen(tokens, losses, allowed, order, chosen)
    if choice.max_tokens is None:
        return found
    (limited,) = squeeze([found], choice.max_tokens)
    return _chosen(tokens, losses, allowed, order, limited.chosen)


def _chosen(
    tokens: NDArray[np.int64],
    losses: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    order: NDArray[np.int64],
    chosen: NDArray[np.intp],
) -> Options:
    rank = np.broadcast_to(order, tokens.shape)
    return Options(tokens, losses, allowed & (rank >= np.take_along_axis(rank, chosen[:, None], 1)), chosen)


def squeeze(pictures: Sequence[Options], budget: int) -> list[Options]:
    """Pool pictures further where all together keep more than `budget` tokens, so that the least is lost in sum.

    Raises:
        ValueError: they cannot be pooled so far; names the fewest possible tokens.
    """
    if sum(picture.kept for picture in pictures) <= budget:
        return list(pictures)
    columns = choose(
        np.concatenate([p.tokens for p in pictures]),
        np.concatenate([p.losses for p in pictures]),
        np.concatenate([p.open for p in pictures]),
        budget,
    )
    ends = np.cumsum([len(p.chosen) for p in pictures])[:-1]
    return [p._replace(chosen=part) for p, part in zip(pictures, np.split(columns, ends), strict=True)]


def layout(choice: Choice, grid: Grid, candidates: tuple[int, ...], chosen: NDArray[np.intp]) -> Layout:
    """The layout that a column for each item stands for."""
    if not choice.block:
        return _layout(choice, grid, candidates[int(chosen[0])])
    return blocked(choice.block, np.array(candidates)[chosen])


def _layout(choice: Choice, grid: Grid, s: int) -> Layout:
    """The whole picture at one factor, except its protected windows."""
    cells = choice.cells(grid)
    return whole(s) if cells is None else blocked(s, np.where(touched(cells, s), 1, s))


def split_windows(flat: Tensor, grid: Grid, candidates: Sequence[int]) -> dict[int, Tensor]:
    """Window values of one picture at every candidate, s -> (ceil(H/s), ceil(W/s)), from those one after another."""
    parts = flat.split([tokens_after(grid, s) for s in candidates])
    return {s: part.view(grid_after(grid, s)) for s, part in zip(candidates, parts, strict=True)}
