"""Independent float64 NumPy oracle for DFMR over time and space, in plain loops, written from the formulas alone.

A video is an array ``v`` of shape (T, H, W, D): frames, rows, columns, channels, each >= 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def distance(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """sum (after - before)^2 / (sum (after - m)^2 + sum (before - m)^2) for two (H, W, D) maps, 0 where they are equal.

    m is the mean per channel over the 2 * H * W cells of both.
    """
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    top = bottom = 0.0
    for channel in range(a.shape[2]):
        x, y = a[:, :, channel], b[:, :, channel]
        m = (x.sum() + y.sum()) / (x.size + y.size)
        top += float(((y - x) ** 2).sum())
        bottom += float(((x - m) ** 2).sum() + ((y - m) ** 2).sum())
    return top / bottom if top > 0 else 0.0


def _windows(v: Array, t: int, s: int) -> list[list[list[Array]]]:
    """Elements of every window as (n, D), by frames, rows and columns; partial ones hold what is really there."""
    frames, height, width, channels = v.shape
    return [
        [
            [v[f : f + t, r : r + s, c : c + s].reshape(-1, channels) for c in range(0, width, s)]
            for r in range(0, height, s)
        ]
        for f in range(0, frames, t)
    ]


def means(v: npt.ArrayLike, t: int, s: int) -> Array:
    """(T, H, W, D) -> (ceil(T/t), ceil(H/s), ceil(W/s), D)."""
    cut = _windows(np.asarray(v, np.float64), t, s)
    return np.array([[[w.sum(axis=0) / len(w) for w in row] for row in plane] for plane in cut])


def sigma(window: Array) -> float:
    """Mean over channels of the population standard deviation of (n, D) elements."""
    total = 0.0
    for channel in window.T:
        mean = channel.sum() / len(channel)
        total += math.sqrt(((channel - mean) ** 2).sum() / len(channel))
    return total / window.shape[1]


def sigmas(v: npt.ArrayLike, t: int, s: int) -> Array:
    """(T, H, W, D) -> (ceil(T/t), ceil(H/s), ceil(W/s))."""
    return np.array([[[sigma(w) for w in row] for row in plane] for plane in _windows(np.asarray(v, np.float64), t, s)])


def cost(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """The score of two (H, W, D) maps at t = 2, s = 1."""
    return score(np.array([before, after]), 2, 1)


def per_frame(v: npt.ArrayLike, t: int, s: int) -> Array:
    """Sigmas (T, ceil(H/s), ceil(W/s)) of the windows that hold each frame."""
    values = sigmas(v, t, s)
    return np.array([values[frame // t] for frame in range(len(np.asarray(v)))])


def score(v: npt.ArrayLike, t: int, s: int) -> float:
    """Mean over frames, rows and columns, of the sigma of the window that holds each frame."""
    values = per_frame(v, t, s)
    return float(values.sum() / values.size)


def tokens(shape: tuple[int, int, int], t: int, s: int) -> int:
    """ceil(T/t) * ceil(H/s) * ceil(W/s)."""
    frames, height, width = shape
    return math.ceil(frames / t) * math.ceil(height / s) * math.ceil(width / s)


def decide(
    scores: Mapping[tuple[int, int], float], limits: Mapping[tuple[int, int], float], shape: tuple[int, int, int]
) -> tuple[int, int]:
    """The (t, s) of fewest tokens whose score is under its limit or whose limit is infinite; then the lowest score."""
    best: tuple[float, ...] | None = None
    chosen = (1, 1)
    for (t, s), limit in limits.items():
        if limit == math.inf or scores[t, s] < limit:
            rank = (tokens(shape, t, s), scores[t, s], t, s)
            if best is None or rank < best:
                best, chosen = rank, (t, s)
    return chosen
