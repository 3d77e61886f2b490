"""The kept grid, drawn over what the encoder saw."""

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dfmr_kernels.regions import Layout

_SIDE = 672
_LINE = (255, 196, 0)
_BOX = (0, 214, 143)

Rectangle = tuple[float, float, float, float]


def overlay_data_url(
    pixels: NDArray[np.uint8], grid: tuple[int, int], kept: int | Layout, protect: Sequence[Sequence[float]] = ()
) -> str:
    """`drawn`, as a PNG in a data URL."""
    return png_data_url(drawn(pixels, grid, kept, protect))


def drawn(
    pixels: NDArray[np.uint8], grid: tuple[int, int], kept: int | Layout, protect: Sequence[Sequence[float]] = ()
) -> Image.Image:
    """One cell per kept visual token, and the boxes that are protected.

    Args:
        pixels: ``(3, height, width)``, the encoder's input.
        grid: rows and columns of the encoder's map.
        kept: pooling factor, or the factor of each block; cells at the right and bottom edge may be partial.
        protect: left, top, right and bottom of each box as shares of the input's width and height.

    Returns:
        a picture 672 pixels wide.
    """
    height, width = pixels.shape[1:]
    scale = _SIDE / width
    picture = Image.fromarray(pixels.transpose(1, 2, 0)).resize(
        (_SIDE, round(height * scale)), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(picture)
    rows, columns = grid
    across, down = picture.width / columns, picture.height / rows
    for cell in _cells(grid, kept):
        corners = cell[0] * across, cell[1] * down, cell[2] * across, cell[3] * down
        draw.rectangle(_inside(corners, picture.size), outline=_LINE)
    for left, top, right, bottom in protect:
        if right <= 0 or bottom <= 0 or left >= 1 or top >= 1:  # cropped away
            continue
        corners = left * picture.width, top * picture.height, right * picture.width, bottom * picture.height
        draw.rectangle(_inside(corners, picture.size), outline=_BOX, width=3)
    return picture


def png_data_url(picture: Image.Image) -> str:
    """A picture as a PNG in a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cells(grid: tuple[int, int], kept: int | Layout) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right and bottom of every kept token, in cells of the map."""
    rows, columns = grid
    block, factors = (max(grid), (kept,)) if isinstance(kept, int) else kept
    remaining = iter(factors)
    for top in range(0, rows, block):
        for left in range(0, columns, block):
            s = next(remaining)
            bottom, right = min(top + block, rows), min(left + block, columns)
            for y in range(top, bottom, s):
                for x in range(left, right, s):
                    yield x, y, min(x + s, right), min(y + s, bottom)


def _inside(corners: Rectangle, size: tuple[int, int]) -> Rectangle:
    width, height = size
    left, top, right, bottom = corners
    return (
        min(max(left, 0), width - 1),
        min(max(top, 0), height - 1),
        min(max(right, 0), width - 1),
        min(max(bottom, 0), height - 1),
    )
