# Triton's functions are typed by Triton, and its tuples grow by + alone.
# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"
# ruff: noqa: RUF005
"""The pyramid of `reference.py` in one pass over the feature map, for the GPU.

A program owns a square tile of one picture and a block of channels, one channel per lane. It streams the tile row by
row and keeps, per channel, the mean and the spread of every window that is open across the row, for all factors at
once. The tile's side is a multiple of every factor, so a window never crosses a tile, each element is loaded once, and
what a program needs stays in registers. The state that all those open windows take is also why a lane has one channel:
a warp's load is one contiguous line of 32 channels (64 or 128 bytes), and a tile row of them is in flight at a time.

For each factor s, a row of a window adds its own mean m and variance v over c <= s columns to what the r rows above it
gave (Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983):

    mean   <- mean + (m - mean) / (r + 1)
    spread <- spread + v + (m - mean)^2 * r / (r + 1)

so that sigma = sqrt(spread / rows) when the window closes. No square of a value is ever taken, only of differences
within a window, so that a large offset or an outlier elsewhere costs no more digits than it costs the input itself.

Sums over channels are finished by a second kernel in a fixed order: nothing depends on scheduling or on batch mates.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfmr_kernels import reference
from dfmr_kernels.decide import Grid, grid_after, tokens_after
from dfmr_kernels.reference import Pyramid
from dfmr_kernels.tiling import BLOCK_D, MAX_SIDE, Pass, plan_passes

SUM_BLOCK = 32
# Fusion is stated since Triton's default differs between versions.
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}


@triton.jit
def _load_row(pointers, channels, present, columns, D: tl.constexpr, SIDE: tl.constexpr, CUT: tl.constexpr):
    """The tile row's pixels, one (BLOCK_D,) tensor per column; zeros where the row or the column is not `present`."""
    pixels = ()
    for i in tl.static_range(SIDE):
        limit = tl.where(present & (i < columns), D, 0) if CUT else tl.where(present, D, 0)
        pixels = pixels + (tl.load(pointers + i * D, mask=channels < limit, other=0.0),)
    return pixels


@triton.jit
def _fresh_windows(COUNT: tl.constexpr, BLOCK_D: tl.constexpr):
    windows = ()
    for _ in tl.static_range(COUNT):
        windows = windows + ((tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)),)
    return windows


@triton.jit
def _add_row(windows, pixels, rows_above, columns, S: tl.constexpr, CUT: tl.constexpr):
    """The (mean, spread) of each S x S window open across a tile row, after that row. See the module's formulas."""
    weight = 1.0 / (rows_above + 1)
    cut_share = 1.0 / tl.maximum(columns % S, 1)
    grown = ()
    for j in tl.static_range(len(windows)):
        mean, spread = windows[j]
        share = tl.where(columns < j * S + S, cut_share, 1.0 / S) if CUT else 1.0 / S
        row_sum = pixels[j * S].to(tl.float32)
        for i in tl.static_range(j * S + 1, j * S + S):
            row_sum += pixels[i].to(tl.float32)
        row_mean = row_sum * share
        row_squares = tl.zeros_like(row_mean)
        for i in tl.static_range(j * S, j * S + S):
            residual = pixels[i].to(tl.float32) - row_mean
            if CUT:
                residual = tl.where(i < columns, residual, 0.0)
            row_squares += residual * residual
        step = row_mean - mean
        spread += row_squares * share + step * step * (rows_above * weight)
        grown = grown + ((mean + step * weight, spread),)
    return grown


@triton.jit
def _close(windows, pooled, partial_sigma, rows, columns, channels, D: tl.constexpr, S: tl.constexpr):
    for j in tl.static_range(len(windows)):
        mean, spread = windows[j]
        exists = j * S < columns
        tl.store(pooled + j * D, mean.to(pooled.dtype.element_ty), mask=channels < tl.where(exists, D, 0))
        tl.store(partial_sigma + j, tl.sum(tl.sqrt(spread / rows)), mask=exists)


@triton.jit
def pool_kernel(
    features,
    pooled,
    partial_sigma,
    finite,
    picture_stride,
    H,
    W,
    first_window,
    all_windows,
    D: tl.constexpr,
    FACTORS: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CUT: tl.constexpr,
):
    """Pool (B, H, W, D) features by every factor of one pass; the grid is (channel blocks, tiles, pictures).

    A picture's windows are numbered through: factor after factor in the order of FACTORS, row-major within a factor,
    starting at `first_window` of `all_windows`. Writes pooled (B, all_windows, D), partial_sigma (B, channel blocks,
    all_windows) float32 sums over the block's channels, and False to finite (B,) where an element is not.
    CUT says that the right-most tile has fewer than SIDE columns.
    """
    block = tl.program_id(0)
    tiles_across = tl.cdiv(W, SIDE)
    top = tl.program_id(1) // tiles_across * SIDE
    left = tl.program_id(1) % tiles_across * SIDE
    picture = tl.program_id(2).to(tl.int64)
    rows = tl.minimum(H - top, SIDE)
    columns = tl.minimum(W - left, SIDE)
    channels = block * BLOCK_D + tl.arange(0, BLOCK_D)

    pointers = features + picture * picture_stride + (top * W + left) * D + channels
    pooled += picture * all_windows * D + channels
    partial_sigma += (picture * tl.num_programs(0) + block) * all_windows

    windows = ()
    for f in tl.static_range(len(FACTORS)):
        windows = windows + (_fresh_windows(SIDE // FACTORS[f], BLOCK_D),)
    probe = tl.zeros([BLOCK_D], tl.float32)
    pixels = _load_row(pointers, channels, rows > 0, columns, D, SIDE, CUT)
    for row in range(rows):
        pointers += W * D
        pixels_below = _load_row(pointers, channels, row + 1 < rows, columns, D, SIDE, CUT)
        for i in tl.static_range(SIDE):
            probe += pixels[i].to(tl.float32) * 0.0  # NaN from the first infinity or NaN on

        first = first_window
        grown = ()
        for f in tl.static_range(len(FACTORS)):
            rows_above = row % FACTORS[f]
            current = _add_row(windows[f], pixels, rows_above, columns, FACTORS[f], CUT)
            if (rows_above + 1 == FACTORS[f]) | (row + 1 == rows):
                window = first + (top + row) // FACTORS[f] * tl.cdiv(W, FACTORS[f]) + left // FACTORS[f]
                to_pooled = pooled + window.to(tl.int64) * D
                _close(current, to_pooled, partial_sigma + window, rows_above + 1, columns, channels, D, FACTORS[f])
                current = _fresh_windows(SIDE // FACTORS[f], BLOCK_D)
            first += tl.cdiv(H, FACTORS[f]) * tl.cdiv(W, FACTORS[f])
            grown = grown + (current,)
        windows = grown
        pixels = pixels_below
    # Programs of a picture may all write here, but only ever the same value.
    tl.store(finite + picture, 0, mask=tl.sum((probe != 0.0).to(tl.int32)) > 0)


@triton.jit
def sigma_kernel(partial_sigma, sigma, blocks, all_windows, D: tl.constexpr, BLOCK: tl.constexpr):
    """Finish the mean over channels: (B, channel blocks, all_windows) sums to (B, all_windows) means, all float32."""
    picture = tl.program_id(1).to(tl.int64)
    windows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        pointers = partial_sigma + (picture * blocks + block[:, None]) * all_windows + windows[None, :]
        mask = (block < blocks)[:, None] & (windows < all_windows)[None, :]
        total += tl.sum(tl.load(pointers, mask=mask, other=0.0), 0)
    tl.store(sigma + picture * all_windows + windows, total / D, mask=windows < all_windows)


def pool_arguments(plan: Pass, grid: Grid, channels: int) -> dict[str, Any]:
    """The compile-time arguments of `pool_kernel` for one pass over (rows, columns) x channels maps."""
    return {
        "D": channels,
        "FACTORS": plan.factors,
        "SIDE": plan.side,
        "BLOCK_D": BLOCK_D,
        "CUT": grid[1] % plan.side != 0,
    }


def pyramid(features: Tensor, candidates: Sequence[int]) -> Pyramid:
    """`reference.pyramid` by the fused kernels, for checked arguments.

    Args:
        features: (B, H, W, D) float32, bfloat16 or float16 on a CUDA device, or on the CPU under Triton's interpreter.
            Pictures may lie apart, as they do after dropping a CLS token; each must be contiguous, or all are copied.
        candidates: distinct pooling factors. Those above MAX_SIDE are left to the reference.

    Returns:
        The pyramid, bit for bit the same for a picture in any batch. Nothing synchronises with the host.
    """
    assert features.ndim == 4
    assert features.dtype in (torch.float32, torch.bfloat16, torch.float16)
    batch, height, width, channels = features.shape
    grid = (height, width)
    if features.stride()[1:] != (width * channels, channels, 1):
        features = features.contiguous()

    fused = [s for s in candidates if 1 < s <= MAX_SIDE]
    passes = plan_passes(fused)
    rest = [s for s in candidates if s not in fused]
    if not fused or max(rest, default=1) > 1:
        sigmas, maps, finite = reference.pyramid(features, rest)
    else:
        finite = torch.ones(batch, dtype=torch.bool, device=features.device)
        sigmas = {s: torch.zeros(batch, *grid, dtype=torch.float32, device=features.device) for s in rest}
        maps = dict.fromkeys(rest, features)

    all_windows = sum(tokens_after(grid, s) for s in fused)
    blocks = triton.cdiv(channels, BLOCK_D)
    pooled = features.new_empty(batch, all_windows, channels)
    sigma = torch.empty(batch, all_windows, dtype=torch.float32, device=features.device)
    partial = torch.empty(batch, blocks, all_windows, dtype=torch.float32, device=features.device)
    first = 0
    with torch.cuda.device_of(features):
        for plan in passes:
            tiles = tokens_after(grid, plan.side)
            pool_kernel[(blocks, tiles, batch)](
                features,
                pooled,
                partial,
                finite,
                features.stride(0),
                height,
                width,
                first,
                all_windows,
                **pool_arguments(plan, grid, channels),
                **OPTIONS,
            )
            for s in plan.factors:
                windows = slice(first, first + tokens_after(grid, s))
                sigmas[s] = sigma[:, windows].unflatten(1, grid_after(grid, s))
                maps[s] = pooled[:, windows].unflatten(1, grid_after(grid, s))
                first = windows.stop
        if fused:
            sigma_kernel[(triton.cdiv(all_windows, SUM_BLOCK), batch)](
                partial, sigma, blocks, all_windows, D=channels, BLOCK=SUM_BLOCK, **OPTIONS
            )
    return Pyramid({s: sigmas[s] for s in candidates}, {s: maps[s] for s in candidates}, finite)
