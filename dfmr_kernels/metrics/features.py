"""Metrics on the encoder's feature map. V is (H, W, D), v_i in R^D the n tokens of a window, u_i = v_i / |v_i|.

A token of length zero has no direction; its u_i is zero.
"""

import torch
from torch import Tensor

from dfmr_kernels.decide import Grid, grid_after
from dfmr_kernels.metrics.base import MetricInput
from dfmr_kernels.reference import differences, window_mean, window_moments


def std(picture: MetricInput) -> dict[int, Tensor]:
    """The paper's measure: the standard deviation within the window, per channel, averaged over channels.

        mean over d of sqrt(mean over i of (v_id - mu_d)^2)

    Source: Wang & Xuan, "LLaVA-Zip", arXiv 2412.08771; see `reference.py`.
    Range: 0 and up, in the unit of the features, so a threshold for one encoder means nothing for another.
    Invariant to the order of tokens in a window, and to an offset per channel. Scales with the features.
    Blind to which channels matter: a few channels or tokens of large norm outweigh the others.
    """
    return {s: picture.sigmas[s] for s in picture.factors}


def std_normalised(picture: MetricInput) -> dict[int, Tensor]:
    """The paper's measure on tokens of equal length: `std` of sqrt(D) * u_i.

        mean over d of sqrt(mean over i of D * (u_id - mean over i of u_id)^2)

    Source: the robust form of `std` against the high-norm tokens that Darcet et al., "Vision Transformers Need
    Registers", arXiv 2309.16588, found in empty background; the factor sqrt(D) is ours, and gives one range for all
    widths.
    Range: 0 to 1. Invariant to the length of each token, so also to the encoder's scale, and to the order of tokens in
    a window. Blind to lengths; not invariant to an offset per channel, which shrinks it.
    """
    scale = picture.features.shape[-1] ** 0.5
    variances = _variances_of_directions(picture)
    return {s: variance.sqrt().mean(-1) * scale for s, variance in variances.items()}


def cosine(picture: MetricInput) -> dict[int, Tensor]:
    """The mean cosine distance between two different tokens of the window.

        1 - mean over i != j of <u_i, u_j>  =  n / (n - 1) * (mean over i of |u_i - m|^2),   m = mean over i of u_i

    The right side needs no pairs, and no difference of nearly equal numbers as 1 - |m|^2 would. 0 where n = 1. A zero
    token is 1/2 away from any other, and 0 from another zero token: the right side is half a squared distance.
    Source: mean pairwise cosine distance as PruneSID has it for redundancy; the closed form is elementary.
    Range: 0 to n / (n - 1), at most 2; above 1 only where tokens point away from each other.
    Invariant to the length of each token, to rotations of the channel space and to the order of tokens in a window.
    Blind to lengths; and a component that all tokens share, as CLIP's have, hides the differences between them.
    """
    found = {}
    for s, variance in _variances_of_directions(picture).items():
        count = _tokens_of_windows(_grid(picture), s, variance.device)
        found[s] = variance.sum(-1) * count / (count - 1).clamp_min(1)
    return found


def spectral(picture: MetricInput) -> dict[int, Tensor]:
    """How many directions pooling loses in the window, weighted by the share of its energy that they hold.

    With G_ij = <v_i - mu, v_j - mu>, the n x n Gram matrix of the centred tokens, whose eigenvalues are those of n
    times their covariance,

        (tr G)^2 / tr(G^2)  *  tr G / (sum over i of |v_i|^2)

    The first factor is the effective rank, 1 to n - 1; the second is the spectral energy that averaging drops, which
    keeps faint noise, whose rank is full, from scoring as rich.
    Source: effective rank after Roy & Vetterli, EUSIPCO 2007, here of order 2 (the participation ratio) instead of
    Shannon's: tr(G^2) is a sum of squares, while eigenvalues on a GPU make the host wait. The energy share follows the
    spectral energy of E-AdaPrune; the product is this project's.
    Range: 0 to min(n - 1, D). Invariant to scale, to rotations of the channel space and to the order of tokens in a
    window. Blind to where the energy is; a few tokens of large norm make a window look low in rank.
    """
    features = picture.features.float()
    # Squares of squares: brought near 1 first, so that no finite map overflows.
    features = features / features.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    energy = features.square().sum(-1, keepdim=True)
    moved = features - features[:1, :1]  # as in `reference.pyramid`: equal tokens differ by exactly 0
    smallest = torch.finfo(torch.float32).tiny
    found = {}
    for s in picture.factors:
        tokens = _tokens_by_window(differences(moved, window_mean(moved, s), s), s)
        gram = tokens @ tokens.transpose(-1, -2)
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        squares = gram.square().sum((-2, -1))
        total = window_mean(energy, s).squeeze(-1) * _tokens_of_windows(_grid(picture), s, features.device)
        found[s] = trace.square() / squares.clamp_min(smallest) * trace / total.clamp_min(smallest)
    return found


def _grid(picture: MetricInput) -> Grid:
    rows, columns, _ = picture.features.shape
    return rows, columns


def _variances_of_directions(picture: MetricInput) -> dict[int, Tensor]:
    """s -> (ceil(H/s), ceil(W/s), D) float32 population variances of u_i per window and channel."""
    features = picture.features.float()
    # By the largest channel first: the square of a large float32 is infinite, that of a small one zero.
    units = features / features.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    units /= units.norm(dim=-1, keepdim=True).clamp_min(0.5)
    # As in `reference.pyramid`: equal tokens differ by exactly 0.
    units -= units[:1, :1].clone()
    return {s: window_moments(units, s)[1] for s in picture.factors}


def _tokens_of_windows(grid: Grid, s: int, device: torch.device) -> Tensor:
    """(ceil(H/s), ceil(W/s)) float32, how many tokens each window has."""
    rows, columns = (
        (length - s * torch.arange(windows, device=device)).clamp_max(s)
        for length, windows in zip(grid, grid_after(grid, s), strict=True)
    )
    return (rows[:, None] * columns).float()


def _tokens_by_window(picture: Tensor, s: int) -> Tensor:
    """(H, W, D) as (ceil(H/s), ceil(W/s), s * s, D); windows that are cut off are filled up with zeros."""
    height, width, channels = picture.shape
    rows, columns = grid_after((height, width), s)
    padded = torch.nn.functional.pad(picture, (0, 0, 0, columns * s - width, 0, rows * s - height))
    return padded.view(rows, s, columns, s, channels).transpose(1, 2).reshape(rows, columns, s * s, channels)
