"""The kept grid, drawn over what the encoder saw."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_SIDE = 672
_LINE = (255, 196, 0)


def overlay_data_url(pixels: NDArray[np.uint8], grid: tuple[int, int], factor: int) -> str:
    """One cell per kept visual token.

    Args:
        pixels: ``(3, height, width)``, the encoder's input.
        grid: rows and columns of the encoder's map.
        factor: pooling factor; cells at the right and bottom edge may be partial.

    Returns:
        a PNG, 672 pixels wide, as a data URL.
    """
    height, width = pixels.shape[1:]
    scale = _SIDE / width
    picture = Image.fromarray(pixels.transpose(1, 2, 0)).resize(
        (_SIDE, round(height * scale)), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(picture)
    rows, columns = grid
    for row in range(0, rows + 1, factor):
        y = min(row * picture.height / rows, picture.height - 1)
        draw.line([(0, y), (picture.width, y)], fill=_LINE)
    for column in range(0, columns + 1, factor):
        x = min(column * picture.width / columns, picture.width - 1)
        draw.line([(x, 0), (x, picture.height)], fill=_LINE)
    draw.rectangle([0, 0, picture.width - 1, picture.height - 1], outline=_LINE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
