"""A picture under construction together with what each of its 24 x 24 cells shows."""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training import drawing

GRID, CELL = 24, 14
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST = 5
COUNT_MOST = 5

HEADS: dict[str, int] = {
    "object": 5,
    "shape": 1 + len(drawing.SHAPES),
    "color": 1 + len(drawing.INKS),
    "char": 1 + len(CHARACTERS),
    "index": 1 + LONGEST,
    "length": 1 + LONGEST,
    "gauge": 1 + 21,
    "defect": 1 + len(drawing.DEFECTS),
    "ordinal": 1 + COUNT_MOST,
    "background": 1 + len(drawing.COLORS),
    "pattern": 1 + len(drawing.PATTERNS),
    "row": GRID,
    "column": GRID,
}
"""Classes of each per-cell label. Class 0 means none, except for rows and columns."""

Box = tuple[float, float, float, float]
Cells = NDArray[np.int8]
Shares = NDArray[np.float32]
ROWS: Cells = np.repeat(np.arange(GRID, dtype=np.int8)[:, None], GRID, axis=1)


class Thing(NamedTuple):
    """Something drawn: what it is, its value (shape, text, reading or defect), its colour, size and centre."""

    family: str
    value: str
    color: str
    size: int
    center: tuple[float, float]


def _overlap(low: float, high: float) -> Shares:
    edges = np.arange(GRID, dtype=np.float32) * CELL
    shared = np.minimum(high, edges + CELL) - np.maximum(low, edges)
    covered: Shares = np.clip(shared, 0, None) / CELL
    return covered


def box_coverage(box: Box) -> Shares:
    """The share of each cell, (24, 24), that a box covers."""
    share: Shares = _overlap(box[1], box[3])[:, None] * _overlap(box[0], box[2])[None]
    return share


class Canvas:
    """An RGB picture of 336 x 336 pixels, the things drawn on it and its per-cell labels (-1: not labelled)."""

    def __init__(self, rng: Random, background: str, pattern: str) -> None:
        self.rng = rng
        self.background, self.pattern = background, pattern
        self.picture = drawing.background(rng, background, pattern)
        self.things: list[Thing] = []
        self.taken: list[Box] = []
        self.labels: dict[str, Cells] = {name: np.zeros((GRID, GRID), np.int8) for name in HEADS}
        self.labels["background"][:] = 1 + list(drawing.COLORS).index(background)
        self.labels["pattern"][:] = 1 + drawing.PATTERNS.index(pattern)
        self.labels["row"], self.labels["column"] = ROWS, ROWS.T
        self._char_share: Shares = np.zeros((GRID, GRID), np.float32)

    def place(self, width: int, height: int, within: Box = (4, 4, drawing.SIDE - 4, drawing.SIDE - 4)) -> Box | None:
        """A free box of that size, or None where none was found."""
        room_across, room_down = within[2] - within[0] - width, within[3] - within[1] - height
        if room_across < 0 or room_down < 0:
            return None
        for _ in range(30):
            left, top = within[0] + self.rng.random() * room_across, within[1] + self.rng.random() * room_down
            box = (round(left), round(top), round(left) + width, round(top) + height)
            if all(
                box[0] > other[2] + 5 or box[2] < other[0] - 5 or box[1] > other[3] + 5 or box[3] < other[1] - 5
                for other in self.taken
            ):
                self.taken.append(box)
                return box
        return None

    def _coverage(self, mask: Image.Image, box: Box) -> Shares:
        full = Image.new("L", (drawing.SIDE, drawing.SIDE), 0)
        full.paste(mask, (int(box[0]), int(box[1])))
        share: Shares = np.asarray(full.reduce(CELL), dtype=np.float32) / np.float32(255)
        return share

    def _mark(self, cells: NDArray[np.bool_], **classes: int) -> None:
        for name, value in classes.items():
            self.labels[name][cells] = value

    def _note(self, family: str, value: str, color: str, size: int, box: Box) -> None:
        self.things.append(Thing(family, value, color, size, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)))

    def add_shape(self, shape: str, color: str, size: int, within: Box | None = None) -> bool:
        """Draw a shape somewhere free; False where there is no room."""
        box = self.place(size, size, within) if within else self.place(size, size)
        if box is None:
            return False
        mask = drawing.shape_mask(self.rng, shape, size)
        self.picture.paste(drawing.jitter(self.rng, drawing.COLORS[color]), (int(box[0]), int(box[1])), mask)
        share = self._coverage(mask, box)
        self._mark(
            share > min(0.3, float(share.max()) * 0.6),
            object=1,
            shape=1 + drawing.SHAPES.index(shape),
            color=1 + drawing.INKS.index(color),
        )
        self._note("shape", shape, color, size, box)
        return True

    def add_text(self, text: str, color: str, size: int, within: Box | None = None) -> bool:
        """Print a text somewhere free; False where there is no room."""
        mask, glyphs = drawing.text_mask(self.rng, text, size)
        box = self.place(mask.width, mask.height, within) if within else self.place(mask.width, mask.height)
        if box is None:
            return False
        left, top = int(box[0]), int(box[1])
        self.picture.paste(drawing.jitter(self.rng, drawing.COLORS[color]), (left, top), mask)
        for index, (char, glyph) in enumerate(glyphs):
            share = box_coverage((left + glyph[0], top + glyph[1], left + glyph[2], top + glyph[3]))
            cells = (share > min(0.2, float(share.max()) * 0.6)) & (share > self._char_share)
            np.copyto(self._char_share, share, where=cells)
            self._mark(
                cells,
                object=2,
                char=1 + CHARACTERS.index(char),
                index=1 + min(index, LONGEST - 1),
                length=min(len(text), LONGEST),
                color=1 + drawing.INKS.index(color),
            )
        self._note("number" if text.isdigit() else "word", text, color, size, box)
        return True

    def add_gauge(self, value: int, diameter: int, within: Box | None = None) -> bool:
        """Draw a dial that reads ``value`` of 100 somewhere free; False where there is no room."""
        box = self.place(diameter, diameter, within) if within else self.place(diameter, diameter)
        if box is None:
            return False
        picture, mask = drawing.gauge(self.rng, value, diameter)
        self.picture.paste(picture, (int(box[0]), int(box[1])), mask)
        self._mark(self._coverage(mask, box) > 0.5, object=3, gauge=1 + round(value / 5))
        self._note("gauge", str(value), "", diameter, box)
        return True

    def add_defect(self, kind: str, tiny: bool, dark: drawing.Rgb, within: Box | None = None) -> bool:
        """Draw a defect somewhere free; False where there is no room."""
        mask = drawing.defect_mask(self.rng, kind, tiny)
        box = self.place(mask.width, mask.height, within) if within else self.place(mask.width, mask.height)
        if box is None:
            return False
        self.picture.paste(dark, (int(box[0]), int(box[1])), mask)
        share = self._coverage(mask, box)
        floor = 0.3 if kind == "stain" else 0.02
        self._mark(share > min(floor, float(share.max()) * 0.6), object=4, defect=1 + drawing.DEFECTS.index(kind))
        self._note("defect", kind, "tiny" if tiny else "large", mask.width, box)
        return True

    def number_shapes(self) -> None:
        """Label each shape's cells with its place from left to right, or with nothing where there are too many."""
        shapes = sorted((thing for thing in self.things if thing.family == "shape"), key=lambda thing: thing.center)
        if len(shapes) > COUNT_MOST:
            self.labels["ordinal"][:] = -1
            return
        marked = self.labels["shape"] > 0
        for ordinal, shape in enumerate(shapes, start=1):
            half = shape.size / 2 + CELL
            across, down = shape.center
            near = box_coverage((across - half, down - half, across + half, down + half)) > 0.99
            self.labels["ordinal"][marked & near] = ordinal

    def finish(self) -> Image.Image:
        """The picture with the light and noise of a camera."""
        self.number_shapes()
        if self.rng.random() < 0.5:
            gain = self.rng.uniform(0.88, 1.08)
            self.picture = self.picture.point([min(255, math.floor(level * gain)) for level in range(256)] * 3)
        if self.rng.random() < 0.4:
            self.picture = drawing.add_noise(self.rng, self.picture, self.rng.uniform(2, 9))
        return self.picture
