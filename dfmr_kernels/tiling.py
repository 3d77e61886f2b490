"""How the fused kernel divides its work: which factors share one reading of the map, in which tiles, moving what bytes.

Pure arithmetic, so that the plan can be tested and its traffic counted where Triton and a GPU are missing.
"""

from collections.abc import Sequence
from math import lcm
from typing import NamedTuple

from dfmr_kernels.decide import Grid, tokens_after

BLOCK_D = 32  # channels per program, one for each lane of its one warp
MIN_SIDE = 8
MAX_SIDE = 32  # also the largest factor that the kernel takes
MAX_WINDOWS = 36  # open at a time: two registers each, beside those of two tile rows of pixels
FLOAT32 = 4  # bytes


class Pass(NamedTuple):
    """The factors that share one reading of the map, and the side of their tiles in pixels, a multiple of each."""

    factors: tuple[int, ...]
    side: int


class Traffic(NamedTuple):
    """Bytes of global memory for one picture: what the tiling reads and writes, and the least that any method must."""

    map_read: int
    outputs_written: int
    scratch: int
    floor: int

    @property
    def moved(self) -> int:
        return self.map_read + self.outputs_written + self.scratch


def plan_passes(factors: Sequence[int]) -> list[Pass]:
    """Divide factors, each in 2..MAX_SIDE, among as few readings of the map as a first fit finds.

    Factors share a pass while one tile can hold whole windows of all of them and their state fits the registers.
    The usual sets (2, 3, 4, 6, 8, 12) and (2, 4, 8, 16) take one pass; (2, 3, 5, 7) takes two.
    """
    groups: list[list[int]] = []
    for s in sorted(factors, reverse=True):
        for group in groups:
            if _fits([s, *group]):
                group.insert(0, s)
                break
        else:
            groups.append([s])
    return [Pass(tuple(group), _side(group)) for group in groups]


def traffic(grid: Grid, channels: int, itemsize: int, factors: Sequence[int]) -> Traffic:
    """Count what the kernels' loads and stores address, program by program, for one picture.

    Args:
        grid: (rows, columns) of the feature map.
        channels: D.
        itemsize: bytes per element of the map and of the pooled maps.
        factors: distinct pooling factors, each in 2..MAX_SIDE.
    """
    height, width = grid
    blocks = -(-channels // BLOCK_D)
    map_read = pooled_written = partial_written = 0
    for plan in plan_passes(factors):
        for top in range(0, height, plan.side):
            for left in range(0, width, plan.side):
                tile = min(plan.side, height - top), min(plan.side, width - left)
                map_read += tile[0] * tile[1] * channels * itemsize
                for s in plan.factors:
                    pooled_written += tokens_after(tile, s) * channels * itemsize
                    partial_written += tokens_after(tile, s) * blocks * FLOAT32
    partial_read = sum(tokens_after(grid, s) for s in factors) * blocks * FLOAT32
    sigma_written = sum(tokens_after(grid, s) for s in factors) * FLOAT32
    outputs = pooled_written + sigma_written
    return Traffic(map_read, outputs, partial_written + partial_read, height * width * channels * itemsize + outputs)


def _fits(factors: Sequence[int]) -> bool:
    side = _side(factors)
    return side <= MAX_SIDE and sum(side // s for s in factors) <= MAX_WINDOWS


def _side(factors: Sequence[int]) -> int:
    period = lcm(*factors)
    return period * max(1, MIN_SIDE // period)
