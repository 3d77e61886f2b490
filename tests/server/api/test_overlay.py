"""The overlay is a readable PNG with a line around each kept cell."""

import base64
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dfmr_kernels import Layout
from server.api.overlay import _BOX, _LINE, _SIDE, overlay_data_url


def drawn(height: int, width: int, grid: tuple[int, int], factor: int) -> Image.Image:
    """The overlay on a black picture of the encoder's size."""
    url = overlay_data_url(np.zeros((3, height, width), np.uint8), grid, factor)
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format == "PNG"
    picture.load()
    return picture


def is_line(picture: Image.Image) -> NDArray[np.bool_]:
    return (np.asarray(picture.convert("RGB")) == _LINE).all(-1)


def runs(flags: NDArray[np.bool_]) -> int:
    """How many separate stretches of True there are."""
    return int(np.diff(np.concatenate([[False], flags]).astype(int)).clip(0).sum())


@pytest.mark.parametrize(("height", "width"), [(336, 336), (384, 384), (224, 448), (28, 28)])
def test_it_is_as_wide_as_promised_and_keeps_the_aspect_ratio(height: int, width: int) -> None:
    assert drawn(height, width, (8, 8), 2).size == (_SIDE, _SIDE * height // width)


@pytest.mark.parametrize(
    ("grid", "factor"),
    [
        ((24, 24), 1),
        ((24, 24), 2),
        ((24, 24), 3),
        ((24, 24), 4),
        ((24, 24), 6),
        ((24, 24), 5),
        ((24, 24), 24),
        ((24, 24), 64),
        ((27, 27), 2),
        ((27, 27), 4),
        ((16, 32), 3),
    ],
)
def test_lines_enclose_as_many_cells_as_there_are_kept_tokens(grid: tuple[int, int], factor: int) -> None:
    rows, columns = grid
    lines = is_line(drawn(336 * rows // columns, 336, grid, factor))
    cell_height, cell_width = lines.shape[0] / rows, lines.shape[1] / columns

    across = lines[:, round(cell_width / 2)]
    along = lines[round(cell_height / 2), :]

    assert runs(across) - 1 == -(-rows // factor)
    assert runs(along) - 1 == -(-columns // factor)


def test_lines_stand_where_windows_meet() -> None:
    along = is_line(drawn(336, 336, (24, 24), 6))[10]
    assert np.flatnonzero(along).tolist() == [0, 168, 336, 504, 671]


def test_the_last_cell_is_smaller_where_the_factor_does_not_divide_the_grid() -> None:
    along = np.flatnonzero(is_line(drawn(378, 378, (27, 27), 4))[10])
    widths = np.diff(along)
    assert widths[-1] < widths[:-1].min()


def test_between_the_lines_is_what_the_encoder_saw() -> None:
    pixels = np.zeros((3, 336, 336), np.uint8)
    pixels[:, :, 168:] = np.array([10, 200, 30], np.uint8)[:, None, None]
    data = overlay_data_url(pixels, (24, 24), 12).partition(",")[2]
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert picture.getpixel((100, 100)) == (0, 0, 0)
    assert picture.getpixel((500, 100)) == (10, 200, 30)


def test_each_block_shows_its_own_grid_and_boxes_stand_out() -> None:
    layout = Layout(4, (1, 4, 2, 4))
    url = overlay_data_url(
        np.zeros((3, 336, 336), np.uint8), (8, 8), layout, [(0.5, 0.0, 1.5, 0.25), (-2.0, 0.0, -1.0, 1.0)]
    )
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    lines = is_line(picture)
    cell = _SIDE // 8
    middles = [y * cell + cell // 2 for y in range(8)]
    assert [runs(lines[middles[0], : 4 * cell - 4]), runs(lines[middles[6], : 4 * cell - 4])] == [4, 2]
    assert runs(lines[middles[6], 4 * cell + 4 :]) == 1
    drawn_boxes = (np.asarray(picture.convert("RGB")) == _BOX).all(-1)
    assert drawn_boxes[: 2 * cell + 1, 4 * cell :].any()
    assert not drawn_boxes[2 * cell + 2 :].any()
    assert not drawn_boxes[:, : 4 * cell - 1].any()
