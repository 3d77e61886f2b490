"""Independent float64 NumPy oracle for the visual-token compressor.

Written from the specification alone, with plain loops over windows: clarity over speed, nothing shared with the
implementation it judges. One picture is an array ``x`` of shape (H, W, D) = (rows, columns, channels), each >= 1; it
is converted to float64 before anything is computed. A factor ``s`` cuts it into non-overlapping s x s windows from
the top left; windows at the right and bottom edge may be partial and hold only the elements that are really there.

Non-finite input is computed with, not rejected: a NaN or an infinity makes the sigma of its window NaN (an infinity
minus an infinite mean is NaN), and from there ``score``, ``median``, ``top_quarter`` and ``p90`` are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _picture(x: npt.ArrayLike) -> Array:
    """Return ``x`` as float64 of shape (H, W, D); ValueError unless three axes, each of length >= 1."""
    picture: Array = np.asarray(x, dtype=np.float64)
    if picture.ndim != 3 or 0 in picture.shape:
        raise ValueError(f"expected a picture of shape (H, W, D), each >= 1, got {picture.shape}")
    return picture


def _grid(length: int, s: int) -> int:
    """Number of windows along an axis: ceil(length / s)."""
    if length < 1 or s < 1:
        raise ValueError(f"length and factor must be >= 1, got length={length}, s={s}")
    return (length + s - 1) // s


def _window(picture: Array, s: int, row: int, col: int) -> Array:
    """Elements of window (row, col) of a (H, W, D) picture as (n, D), 1 <= n <= s * s; slicing stops at the edges."""
    block = picture[row * s : (row + 1) * s, col * s : (col + 1) * s, :]
    return block.reshape(-1, picture.shape[2])


def _mean_of(elements: Array) -> Array:
    """Per-channel mean of (n, D) elements, shape (D,): mu = (1/n) * sum_i v_i."""
    mean: Array = elements.sum(axis=0) / elements.shape[0]
    return mean


def _values(sigma_map: npt.ArrayLike) -> list[float]:
    """All n >= 1 entries of a sigma map of any shape, as a flat list of floats."""
    values = [float(v) for v in np.asarray(sigma_map, dtype=np.float64).ravel()]
    if not values:
        raise ValueError("a sigma map needs at least one window")
    return values


def window_mean(x: npt.ArrayLike, s: int) -> Array:
    """Mean of every window: (H, W, D) -> (ceil(H/s), ceil(W/s), D).

    mu_k = (1/n_k) * sum over the n_k elements that window k really has.
    """
    picture = _picture(x)
    height, width, channels = picture.shape
    rows, cols = _grid(height, s), _grid(width, s)
    result = np.empty((rows, cols, channels), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        for row in range(rows):
            for col in range(cols):
                result[row, col] = _mean_of(_window(picture, s, row, col))
    return result


def window_sigma(x: npt.ArrayLike, s: int) -> Array:
    """Standard deviation of every window, averaged over channels: (H, W, D) -> (ceil(H/s), ceil(W/s)).

    sigma_k = (1/D) * sum_d sqrt((1/n_k) * sum_i (v_id - mu_kd)^2): population form, two-pass (around the window's
    own mean), n_k the number of elements that window k really has.
    """
    picture = _picture(x)
    height, width, channels = picture.shape
    rows, cols = _grid(height, s), _grid(width, s)
    result = np.empty((rows, cols), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        for row in range(rows):
            for col in range(cols):
                elements = _window(picture, s, row, col)
                deviations = elements - _mean_of(elements)
                per_channel = np.sqrt(_mean_of(deviations * deviations))
                result[row, col] = per_channel.sum() / channels
    return result


def score(x: npt.ArrayLike, s: int) -> float:
    """Score of a (H, W, D) picture at factor s: (1/n) * sum_k sigma_k, every window (partial or not) weighing 1/n."""
    sigma = window_sigma(x, s)
    return float(sigma.sum() / sigma.size)


def top_quarter(sigma_map: npt.ArrayLike) -> float:
    """Mean of the ceil(n/4) largest of the n >= 1 entries of a sigma map of any shape; NaN if any entry is NaN."""
    values = _values(sigma_map)
    if any(math.isnan(v) for v in values):
        return math.nan
    count = (len(values) + 3) // 4
    largest = sorted(values, reverse=True)[:count]
    return sum(largest) / count


def median(sigma_map: npt.ArrayLike) -> float:
    """Middle of the n >= 1 sorted entries of a sigma map, the mean of two if n is even; NaN if any entry is NaN."""
    values = _values(sigma_map)
    if any(math.isnan(v) for v in values):
        return math.nan
    values.sort()
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def p90(sigma_map: npt.ArrayLike) -> float:
    """0.9 quantile of the n >= 1 entries of a sigma map of any shape, linearly interpolated; NaN if any entry is NaN.

    With v_0 <= ... <= v_(n-1) and 0.9 * (n - 1) = i + t, i whole and 0 <= t < 1: v_i + t * (v_(i+1) - v_i).
    """
    values = _values(sigma_map)
    if any(math.isnan(v) for v in values):
        return math.nan
    values.sort()
    index, tenths = divmod(9 * (len(values) - 1), 10)
    if tenths == 0:
        return values[index]
    low, high = values[index], values[index + 1]
    return low if low == high else low + (tenths / 10) * (high - low)


def largest(sigma_map: npt.ArrayLike) -> float:
    """Largest of the n >= 1 entries of a sigma map of any shape; NaN if any entry is NaN."""
    values = _values(sigma_map)
    return math.nan if any(math.isnan(v) for v in values) else max(values)


def peak(sigma_map: npt.ArrayLike) -> float:
    """Largest entry of a sigma map minus the mean entry; NaN if any entry is NaN."""
    values = _values(sigma_map)
    return largest(sigma_map) - math.fsum(values) / len(values)


def is_finite(x: npt.ArrayLike) -> bool:
    """True if no element of the (H, W, D) picture is NaN or infinite."""
    return all(math.isfinite(float(v)) for v in _picture(x).ravel())


def _passes(value: float, threshold: float) -> bool:
    """value < threshold, except that a threshold of +inf passes every value, also NaN and +inf."""
    if threshold == math.inf:
        return True
    return value < threshold  # False whenever value is NaN, and always for a threshold of -inf or NaN


def decide(scores: Sequence[float], thresholds: Sequence[float], candidates: Sequence[int]) -> int:
    """Largest candidate whose score is strictly under its threshold, 1 if there is none.

    The three sequences are parallel, of one length >= 0, in any order of candidates. NaN scores never pass a finite
    threshold; a threshold of +inf always passes, one of -inf never does. Candidates are judged one by one: a factor
    may be chosen although a smaller one fails.
    """
    chosen = 1
    for value, threshold, candidate in zip(scores, thresholds, candidates, strict=True):
        if candidate < 1:
            raise ValueError(f"a candidate must be >= 1, got {candidate}")
        if candidate > chosen and _passes(float(value), float(threshold)):
            chosen = int(candidate)
    return chosen


def tokens(H: int, W: int, s: int) -> int:
    """Number of tokens an H x W map has at factor s: ceil(H/s) * ceil(W/s)."""
    return _grid(H, s) * _grid(W, s)


def smallest_fitting(H: int, W: int, candidates: Sequence[int], max_tokens: int) -> int | None:
    """Smallest candidate s with tokens(H, W, s) <= max_tokens, in any order of candidates; None if there is none."""
    for candidate in sorted(candidates):
        if tokens(H, W, candidate) <= max_tokens:
            return int(candidate)
    return None
