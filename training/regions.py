"""One picture pooled by a factor of its own in every block, as the compressor does where it decides by region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCKS = {4: (1, 2, 4), 6: (1, 2, 3, 6), 8: (1, 2, 4, 8)}
"""Sides of blocks in cells, and the factors that divide them."""


def block_deviations(features: Tensor, block: int) -> Tensor:
    """How much each block of (h, w, width) varies: (blocks,), row-major, the mean over channels of their deviation."""
    high, wide, width = features.shape
    split = features.float().reshape(high // block, block, wide // block, block, width)
    return split.transpose(1, 2).flatten(2, 3).std(2, correction=0).mean(-1).flatten()


def pool_blocks(features: Tensor, block: int, factors: Sequence[int]) -> Tensor:
    """Kept tokens (tokens, width) of (h, w, width): blocks in reading order, and windows in reading order inside each.

    ``factors`` has one factor for each block, row-major.
    """
    _, wide, width = features.shape
    across = wide // block
    kept = []
    for index, s in enumerate(factors):
        top, left = index // across * block, index % across * block
        cells = features[top : top + block, left : left + block]
        kept.append(cells.reshape(block // s, s, block // s, s, width).mean((1, 3)).flatten(0, 1))
    return torch.cat(kept)
