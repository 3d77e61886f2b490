"""DFMR's information measure and pooling in plain PyTorch: the specification, and the CPU backend.

A feature map V of shape (H, W, D) is cut into non-overlapping s x s windows W_k, row-major from the top left corner.
Windows cut off by the right or bottom edge are averaged over the elements that they have. With n_k = |W_k|,

    mu_k(d)    = 1/n_k * sum over (u, v) in W_k of V(u, v, d)
    sigma_k(d) = sqrt(1/n_k * sum over (u, v) in W_k of (V(u, v, d) - mu_k(d))^2)
    sigma_k    = mean over channels d of sigma_k(d)

The pooled map holds mu_k, the sigma map sigma_k. The window formula is that of Wang & Xuan, "LLaVA-Zip: Adaptive Visual
Token Compression with Intrinsic Image Information", arXiv 2412.08771; the mean over channels and the treatment of
edges are this project's reconstruction, since the paper's text that is public does not state them.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from dfmr_kernels.decide import grid_after


class Pyramid(NamedTuple):
    """What every candidate pooling factor s would make of a batch of B feature maps, keyed by s.

    Attributes:
        sigmas: s -> (B, ceil(H/s), ceil(W/s)) float32, each window's mean over channels of its population standard
            deviation, in the unit of the features; or another metric's window maps (`reduce.measure`). All zero at
            s = 1.
        maps: s -> (B, ceil(H/s), ceil(W/s), D) window means in the features' dtype. The features themselves at s = 1.
        finite: (B,) bool, whether every element of the picture is finite. The rest means nothing where it is False.
    """

    sigmas: dict[int, Tensor]
    maps: dict[int, Tensor]
    finite: Tensor


def pyramid(features: Tensor, candidates: Sequence[int]) -> Pyramid:
    """Pool a batch at every candidate factor and measure what each window's mean hides.

    Args:
        features: (B, H, W, D) batch, rows, columns, channels; float32, bfloat16 or float16.
        candidates: distinct pooling factors s >= 1, in any order.

    Returns:
        The pyramid, on the features' device. Sums are taken in float32, whatever the dtype.
    """
    batch, height, width, channels = features.shape
    sigmas: dict[int, Tensor] = {}
    maps: dict[int, Tensor] = {}
    for s in candidates:
        grid = grid_after((height, width), s)
        sigmas[s] = torch.zeros(batch, *grid, dtype=torch.float32, device=features.device)
        maps[s] = features if s == 1 else features.new_empty(batch, *grid, channels)
    finite = torch.ones(batch, dtype=torch.bool, device=features.device)

    # One picture at a time: torch chooses the order of a sum by the tensor's shape, so that in one call for the whole
    # batch a picture's last bits would depend on how many others came with it.
    for index, picture in enumerate(features):
        finite[index] = picture.abs().max() < inf  # NaN goes through max, and is below nothing
        # Both passes below see differences from one pixel: constant channels come out as exactly 0, and those with a
        # large offset keep their digits.
        origin = picture[:1, :1].float()
        centred = picture.float() - origin
        for s, pooled in maps.items():
            if s > 1:
                mean, variance = window_moments(centred, s)
                sigmas[s][index] = variance.sqrt_().mean(-1)
                pooled[index] = mean + origin
    return Pyramid(sigmas, maps, finite)


def window_moments(picture: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Window means and population variances, (ceil(H/s), ceil(W/s), D) each, of one float32 map (H, W, D).

    In two passes, the second over the differences from the first's means.
    """
    mean = window_mean(picture, s)
    return mean, window_mean(differences(picture, mean, s).square_(), s)


def differences(picture: Tensor, means: Tensor, s: int) -> Tensor:
    """What each element of a map (H, W, D) has over the mean of its window, of (ceil(H/s), ceil(W/s), D); (H, W, D)."""
    height, width, channels = picture.shape
    if height % s or width % s:
        spread = means.repeat_interleave(s, 0)[:height].repeat_interleave(s, 1)[:, :width]
        return torch.sub(picture, spread, out=spread)
    windows = picture.reshape(height // s, s, width // s, s, channels)
    return (windows - means[:, None, :, None]).view(picture.shape)


def window_mean(picture: Tensor, s: int) -> Tensor:
    """Window means (ceil(H/s), ceil(W/s), D) of one float32 map (H, W, D), over the elements that a window has."""
    return segment_mean(segment_mean(picture, s), s, 1)


def segment_mean(values: Tensor, s: int, dim: int = 0) -> Tensor:
    """Means (..., ceil(n/s), ...) of s neighbours each along one axis of (..., n, ...); the last may be of fewer.

    Whole slices are added one after another: several times faster on the CPU than torch's own pooling and strided
    means, and in an order that does not depend on the tensor's shape.
    """
    full, rest = divmod(values.shape[dim], s)
    found = values.new_empty(*values.shape[:dim], full + (rest > 0), *values.shape[dim + 1 :])
    if full:
        segments = values.narrow(dim, 0, full * s).unflatten(dim, (full, s))
        _mean_of(segments.unbind(dim + 1), found.narrow(dim, 0, full))
    if rest:
        _mean_of(values.narrow(dim, full * s, rest).split(1, dim), found.narrow(dim, full, 1))
    return found


def _mean_of(parts: Sequence[Tensor], out: Tensor) -> None:
    if len(parts) == 1:
        out.copy_(parts[0])
        return
    torch.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        out += part
    out /= len(parts)
