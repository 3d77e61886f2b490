"""Independent float64 NumPy oracles for the metrics: formulas in plain loops over windows, pairs and pixels.

As in `oracle.py`, one picture at a time, windows from the top left, cut off at the right and bottom edge. Feature
metrics take ``x`` (H, W, D); pixel metrics take ``pixels`` (3, h, w) uint8 and the map's grid (H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Grid = tuple[int, int]


def _windows(grid: Grid, s: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Row and column of every window, and the positions of the tokens that it really has."""
    height, width = grid
    for row in range(math.ceil(height / s)):
        for col in range(math.ceil(width / s)):
            rows = range(row * s, min(row * s + s, height))
            cols = range(col * s, min(col * s + s, width))
            yield row, col, [(i, j) for i in rows for j in cols]


def _map(grid: Grid, s: int, value: Callable[[list[tuple[int, int]]], float]) -> Array:
    result = np.empty((math.ceil(grid[0] / s), math.ceil(grid[1] / s)))
    for row, col, tokens in _windows(grid, s):
        result[row, col] = value(tokens)
    return result


def _direction(v: Array) -> Array:
    length = math.sqrt(float((v * v).sum()))
    return v / length if length > 0 else np.zeros_like(v)


def std_normalised(x: npt.ArrayLike, s: int) -> Array:
    """Population std per channel of tokens brought to length sqrt(D), averaged over channels."""
    picture = np.asarray(x, dtype=np.float64)
    channels = picture.shape[2]

    def value(tokens: list[tuple[int, int]]) -> float:
        units = np.array([_direction(picture[t]) * math.sqrt(channels) for t in tokens])
        deviations = units - units.sum(0) / len(units)
        return float(np.sqrt((deviations**2).sum(0) / len(units)).sum() / channels)

    return _map(picture.shape[:2], s, value)


def cosine(x: npt.ArrayLike, s: int) -> Array:
    """1 - cosine similarity, averaged pair by pair over the pairs of different tokens; 0 where there is no pair.

    Two tokens of length zero are 0 apart, and one of length zero is 1/2 away from every other.
    """
    picture = np.asarray(x, dtype=np.float64)

    def distance(a: Array, b: Array) -> float:
        if not a.any() or not b.any():
            return 0.5 if a.any() or b.any() else 0.0
        return 1 - float((a * b).sum()) / math.sqrt(float((a * a).sum()) * float((b * b).sum()))

    def value(tokens: list[tuple[int, int]]) -> float:
        pairs = [(picture[a], picture[b]) for k, a in enumerate(tokens) for b in tokens[:k]]
        return sum(distance(a, b) for a, b in pairs) / len(pairs) if pairs else 0.0

    return _map(picture.shape[:2], s, value)


def spectral(x: npt.ArrayLike, s: int) -> Array:
    """Participation ratio of the squared singular values of the centred tokens, times their share of the energy."""
    picture = np.asarray(x, dtype=np.float64)

    def value(tokens: list[tuple[int, int]]) -> float:
        matrix = np.array([picture[t] for t in tokens])
        eigenvalues = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False) ** 2
        if not eigenvalues.sum():
            return 0.0
        rank = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
        return float(rank * eigenvalues.sum() / (matrix**2).sum())

    return _map(picture.shape[:2], s, value)


def _luma(pixels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Integer luma (h, w), 0 to 255."""
    red, green, blue = np.asarray(pixels, dtype=np.int64)
    return (77 * red + 150 * green + 29 * blue + 128) >> 8


def entropy(pixels: npt.ArrayLike, grid: Grid, s: int) -> Array:
    """Bits of the histogram of luma in 32 bins over all the window's pixels."""
    luma = _luma(pixels)
    rows, cols = luma.shape[0] // grid[0], luma.shape[1] // grid[1]

    def value(tokens: list[tuple[int, int]]) -> float:
        seen = np.concatenate([luma[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols].ravel() for i, j in tokens])
        _, counts = np.unique(seen >> 3, return_counts=True)
        shares = counts / counts.sum()
        return -float((shares * np.log2(shares)).sum())

    return _map(grid, s, value)


def gradient(pixels: npt.ArrayLike, grid: Grid, s: int) -> Array:
    """Root of the octaves' summed gradient energies; an octave counts where twice its step fits the window."""
    luma = _luma(pixels) / 255
    rows, cols = luma.shape[0] // grid[0], luma.shape[1] // grid[1]
    level = luma[: rows * grid[0], : cols * grid[1]]
    total = np.zeros(grid)
    step = 1
    while 2 * step <= s * min(rows, cols):
        total += _token_means(_gradient_energy(level), grid)
        height, width = level.shape[0] // 2, level.shape[1] // 2
        if height == 0 or width == 0:
            break
        level = np.array(
            [[level[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum() / 4 for j in range(width)] for i in range(height)]
        )
        step *= 2
    return _map(grid, s, lambda tokens: math.sqrt(sum(float(total[t]) for t in tokens) / len(tokens)))


def _gradient_energy(level: Array) -> Array:
    """Squared length of Sobel's gradient at every pixel, a pixel beyond the edge being its nearest one inside."""
    height, width = level.shape
    energy = np.empty_like(level)

    def at(i: int, j: int) -> float:
        return float(level[min(max(i, 0), height - 1), min(max(j, 0), width - 1)])

    for i in range(height):
        for j in range(width):
            down = sum(w * (at(i + 1, j + k) - at(i - 1, j + k)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8
            across = sum(w * (at(i + k, j + 1) - at(i + k, j - 1)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8
            energy[i, j] = down * down + across * across
    return energy


def _token_means(energy: Array, grid: Grid) -> Array:
    """Mean over each token's pixels: from the floor of where it begins up to the ceiling of where it ends."""
    height, width = energy.shape
    means = np.empty(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows = slice(i * height // grid[0], math.ceil((i + 1) * height / grid[0]))
            cols = slice(j * width // grid[1], math.ceil((j + 1) * width / grid[1]))
            means[i, j] = energy[rows, cols].mean()
    return means
