"""How many visual tokens a request's pictures keep: one by one, or all together where a budget may bind.

Everything is decided from what an `Entry` holds, wherever and whenever its picture was encoded.
"""

from collections.abc import Sequence
from math import inf
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfmr_kernels.choices import Choice, Options, extent, layout, options, split_windows, squeeze
from dfmr_kernels.decide import grid_after
from dfmr_kernels.regions import Layout, block_scores, pool
from dfmr_kernels.scores import aggregate_by_name
from server.encoding.cache import Entry, Features
from server.errors import PictureError


class Budget(NamedTuple):
    """The visual tokens that a request's pictures may keep together.

    Attributes:
        asked: what the request or the operator wants; a request that cannot be met is refused.
        rooms: what the context leaves, with a longer answer first; the first that can be met counts, and where none
            can, pictures are pooled as far as they go. Empty if the context does not matter.
    """

    asked: int | None = None
    rooms: tuple[int, ...] = ()


NO_BUDGET = Budget()


class Limit(NamedTuple):
    """A budget that pictures at full detail would exceed: the tokens, and the option that it comes from."""

    tokens: int
    option: Literal["max_visual_tokens", "fit_context"]


class Before(NamedTuple):
    """What a picture would have kept without the limit: its tokens, and its factor if it was one."""

    tokens: int
    factor: int | None
    limit: Limit


class Settled(NamedTuple):
    """What a picture keeps, and what it would have kept if that is more."""

    layout: Layout
    before: Before | None


class Decider:
    """Decisions on pictures of one encoder.

    Args:
        grid: rows and columns of its map.
        candidates: the pooling factors that are measured.
        aggregate: how window values become a score.
    """

    def __init__(self, grid: tuple[int, int], candidates: tuple[int, ...], aggregate: str) -> None:
        self.grid = grid
        self.candidates = candidates
        self._score = aggregate_by_name(aggregate)

    def limit(self, choices: Sequence[Choice], budget: Budget) -> Limit | None:
        """The budget in tokens, where pictures that may be decided so could exceed it.

        Raises:
            PictureError: what was asked for is less than the fewest possible tokens.
        """
        extents = [extent(choice, self.grid, self.candidates) for choice in choices]
        fewest = sum(one.fewest for one in extents)
        limits = []
        if budget.asked is not None:
            if fewest > budget.asked:
                raise PictureError(
                    None,
                    "policy",
                    f"dfmr.max_visual_tokens: {budget.asked} are not enough for {len(choices)} pictures, the fewest "
                    f"possible is {fewest}. Send fewer pictures, or offer larger factors.",
                )
            limits.append(Limit(budget.asked, "max_visual_tokens"))
        if budget.rooms:
            room = next((room for room in budget.rooms if room >= fewest), fewest)
            limits.append(Limit(room, "fit_context"))
        least = min(limits, default=None)
        return least if least is not None and sum(one.most for one in extents) > least.tokens else None

    def fewest(self, choice: Choice) -> int:
        """The fewest tokens that a picture can keep."""
        return extent(choice, self.grid, self.candidates).fewest

    def options(self, entry: Entry, choice: Choice) -> Options:
        """What the thresholds choose for a picture, and what it may still be pooled to."""
        assert entry.windows is not None
        windows = split_windows(entry.windows, self.grid, self.candidates)
        return options(choice, self.grid, self.candidates, entry.scores, windows, self._score)

    def scores(self, entry: Entry, choice: Choice) -> list[float]:
        """The scores that a threshold is compared with: of the picture, or of its blocks, at the factors allowed."""
        allowed = [s for s, limit in zip(self.candidates, choice.thresholds, strict=True) if limit > -inf]
        if not choice.block:
            return [score for s, score in zip(self.candidates, entry.scores, strict=True) if s in allowed]
        return [float(score) for score in self.block_scores(entry, choice.block, allowed).ravel()]

    def block_scores(self, entry: Entry, block: int, factors: Sequence[int]) -> NDArray[np.float64]:
        """The score of each block at each factor, ``(blocks, factors)``."""
        assert entry.windows is not None
        windows = split_windows(entry.windows, self.grid, self.candidates)
        return block_scores({s: windows[s] for s in factors}, self.grid, block, self._score)

    def layout(self, entry: Entry, choice: Choice) -> Layout:
        """What the thresholds choose for a picture."""
        return layout(choice, self.grid, self.candidates, self.options(entry, choice).chosen)

    def settle(self, entries: Sequence[Entry], choices: Sequence[Choice], limit: Limit) -> list[Settled]:
        """What every picture keeps where all together may keep no more than the limit.

        Raises:
            ValueError: they cannot be pooled so far.
        """
        found = [self.options(entry, choice) for entry, choice in zip(entries, choices, strict=True)]
        settled = []
        for choice, old, new in zip(choices, found, squeeze(found, limit.tokens), strict=True):
            kept, wanted = (layout(choice, self.grid, self.candidates, one.chosen) for one in (new, old))
            settled.append(Settled(kept, None if kept == wanted else Before(old.kept, wanted.factor, limit)))
        return settled

    def find(self, entry: Entry, kept: Layout) -> Features | None:
        """A picture's features in this layout, if they were made or can be put together from what was made."""
        key = kept if kept.factor is None else kept.factor
        if (features := entry.features.get(key)) is not None:
            return features
        used = set(kept.factors)
        if not used <= entry.features.keys():
            return None
        return features_of(pool({s: entry.features[s].tensor for s in used}, self.grid, kept), self.grid, kept)

    def levels(self, kept: Layout) -> Choice:
        """How to encode a picture so that its whole map is there at every factor of a layout, and at no other."""
        used = set(kept.factors)
        return Choice(tuple(inf if s == min(used) else 0.0 if s in used else -inf for s in self.candidates))


def features_of(tensor: Tensor, grid: tuple[int, int], kept: Layout) -> Features:
    """Kept tokens ``(tokens, channels)`` of a map of ``grid``, with what they are."""
    if kept.factor is None:
        return Features(tensor, None, None, kept)
    return Features(tensor, grid_after(grid, kept.factor), kept.factor)
