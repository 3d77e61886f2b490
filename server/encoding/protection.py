"""Boxes that a client wants kept as they are, from coordinates of its picture to cells of the encoder's map."""

import math
from collections.abc import Sequence

import numpy as np

from dfmr_kernels.regions import touched
from server.encoding.preprocess import Box, Preprocessor

_ROUNDING = 1e-6
"""Share of a cell that a box may reach into it without touching it: boxes that end where a cell does should not."""


def protected_cells(
    boxes: Sequence[Box], size: tuple[int, int], preprocessor: Preprocessor, grid: tuple[int, int]
) -> bytes | None:
    """The cells that any box touches.

    Args:
        boxes: left, top, right and bottom as shares of the picture's width and height.
        size: the picture's width and height in pixels, as it was sent.
        preprocessor: which scales, pads and crops it.
        grid: rows and columns of the encoder's map.

    Returns:
        one byte per cell, row-major, 1 where it is touched; None where no cell is.
    """
    cells = np.zeros(grid, np.bool_)
    rows, columns = grid
    for box in boxes:
        left, top, right, bottom = preprocessor.place(box, size)
        cells[_span(top, bottom, rows), _span(left, right, columns)] = True
    return cells.tobytes() if cells.any() else None


def blocks_with(cells: bytes | None, grid: tuple[int, int], block: int) -> list[bool]:
    """Which blocks of this side hold any of the cells, row-major."""
    marked = np.zeros(grid, np.bool_) if cells is None else np.frombuffer(cells, np.bool_).reshape(grid)
    found: list[bool] = touched(marked, block).tolist()
    return found


def _span(start: float, end: float, length: int) -> slice:
    return slice(max(0, math.floor(start * length + _ROUNDING)), max(0, math.ceil(end * length - _ROUNDING)))
