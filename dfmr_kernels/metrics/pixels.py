"""Metrics on the pixels that the encoder was given: independent of it, and ready before it has run.

Both see luma alone, y = floor((77 R + 150 G + 29 B + 128) / 256), 0 to 255: ITU-R BT.601 in integers, so that the same
picture gives the same histogram on every device. Pixels of the bottom and right edge that no token saw do not count.
"""

from math import log

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, pad

from dfmr_kernels.metrics.base import MetricInput
from dfmr_kernels.reference import window_mean

BINS = 32


def gradient(picture: MetricInput) -> dict[int, Tensor]:
    """The energy of brightness gradients, over all octaves that fit into the window.

    Level 0 is luma / 255, level k + 1 the means of level k over 2 x 2 pixels (an odd last row or column falls away).
    With Sobel's gradients g_k of level k, edges continued, and a token's patch of p pixels (the shorter side),

        sqrt(sum over k with 2^(k + 1) <= s * p of  mean over the window's tokens of  mean over their pixels of |g_k|^2)

    A token's mean at level k, n pixels wide, for token column j of W: pixels floor(j n / W) up to ceil((j + 1) n / W);
    rows alike. A larger window holds coarser octaves, which pooling by it would lose.
    Source: multi-scale gradient energy (Sobel & Feldman 1968; pyramid after Burt & Adelson 1983), put together here.
    Range: 0 to sqrt(octaves / 2). Invariant to brightness, mirroring and quarter turns; scales with contrast.
    Blind to colour of equal luma and to meaning: grain, grass and print of the same contrast score alike.
    """
    levels = _gradient_energies(picture)
    patch = min(picture.seen_pixels()[1])
    found = {}
    for s in picture.factors:
        octaves = min((s * patch).bit_length() - 1, len(levels))
        energy = torch.stack(levels[:octaves]).sum(0)
        found[s] = window_mean(energy[..., None], s).squeeze(-1).sqrt()
    return found


def entropy(picture: MetricInput) -> dict[int, Tensor]:
    """The entropy of the window's brightness histogram, in bits.

        - sum over bins b of p_b * log2 p_b,   p_b the share of the window's pixels with floor(y / 8) = b, b < 32

    Source: patch entropy as Choudhury et al., "Accelerating Vision Transformers with Adaptive Patch Sizes" (APT), use
    it to size patches; 32 bins are this project's choice, enough pixels each in a window of 2 x 2 patches.
    Range: 0 to 5. Invariant to any order of the window's pixels, and to any one-to-one change of bins.
    Blind to structure, since a smooth ramp scores as high as print does, to contrast below 8 of 255 levels, and to
    colour of equal luma.
    """
    pixels, (rows, columns) = picture.seen_pixels()
    height, width, _ = picture.features.shape
    bins = _luma(pixels).div(256 // BINS, rounding_mode="floor")
    token_row = torch.arange(height, device=pixels.device).repeat_interleave(rows)
    token_column = torch.arange(width, device=pixels.device).repeat_interleave(columns)
    slots = (token_row[:, None] * width + token_column) * BINS + bins
    counts = torch.zeros(height * width * BINS, dtype=torch.int32, device=pixels.device)
    counts.scatter_add_(
        0, slots.flatten(), torch.ones((), dtype=torch.int32, device=pixels.device).expand(slots.numel())
    )
    shares = counts.view(height, width, BINS).float() / (rows * columns)
    return {s: torch.special.entr(window_mean(shares, s)).sum(-1) / log(2) for s in picture.factors}


def _luma(pixels: Tensor) -> Tensor:
    """(h, w) int64 luma of (3, h, w) uint8 RGB."""
    red, green, blue = pixels.long().unbind()
    return (77 * red + 150 * green + 29 * blue + 128).div(256, rounding_mode="floor")


def _gradient_energies(picture: MetricInput) -> list[Tensor]:
    """Per level, (H, W) float32: the mean of |g_k|^2 over each token's pixels, up to the last that a factor needs."""
    pixels, (rows, columns) = picture.seen_pixels()
    height, width, _ = picture.features.shape
    level = _luma(pixels).float()[None] / 255
    energies = []
    for _ in range((max(picture.factors, default=1) * min(rows, columns)).bit_length() - 1):
        down, across = _sobel(pad(level, (1, 1, 1, 1), mode="replicate"))
        energies.append(adaptive_avg_pool2d(down.square() + across.square(), (height, width))[0])
        if min(level.shape[1:]) < 2:
            break
        level = avg_pool2d(level, 2)
    return energies


def _sobel(level: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's two gradients (1, h, w), per pixel, of (1, h + 2, w + 2)."""
    across = level[:, :, 2:] - level[:, :, :-2]
    down = level[:, 2:] - level[:, :-2]
    return (
        (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 8,
        (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 8,
    )
