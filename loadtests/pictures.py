"""Pictures for load: photographs, documents and charts made at run time, flat and noise as bounds, no two equal."""

import base64
import functools
import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PHOTOGRAPHS = sorted((Path(__file__).resolve().parent.parent / "examples" / "pictures").glob("*.jpg"))
KINDS = ("photograph", "document", "chart", "flat", "noise")
Kind = Literal["photograph", "document", "chart", "flat", "noise"]
SIZE = (640, 480)
_VARIANTS = 8
_WORDS = ("invoice", "total", "pump", "valve", "pressure", "shift", "report", "order", "crack", "weld", "seal", "motor")
_INK = (30, 40, 50)


class Gallery:
    """An endless supply of encoded pictures, each different from all others of the same seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._serial = itertools.count()

    def take(self, kind: Kind) -> tuple[bytes, str]:
        """One picture: its file's bytes and format; photographs are JPEG, drawn ones PNG."""
        serial = next(self._serial)
        picture = _base(kind, serial % _VARIANTS).copy()
        # The serial number in the corner's pixels makes every picture new to caches by content of any sort.
        mark = np.frombuffer(f"{self._seed:08d}{serial:010d}".encode(), np.uint8)
        for column, value in enumerate(mark):
            picture.paste((int(value - 48) * 25,) * 3, (column * 8, 0, column * 8 + 8, 8))
        buffer = io.BytesIO()
        lossy = kind in ("photograph", "noise")
        picture.save(buffer, "JPEG", quality=88) if lossy else picture.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "jpeg" if lossy else "png"

    def urls(self, kinds: tuple[Kind, ...], downscale: float = 1.0) -> Iterator[str]:
        """Pictures of these kinds in turn, without end, as data URLs.

        Args:
            downscale: share of width and height that is left, as if the client shrank them before sending.
        """
        for kind in itertools.cycle(kinds):
            data, subtype = self.take(kind)
            if downscale != 1.0:
                data = _downscaled(data, downscale, subtype)
            yield f"data:image/{subtype};base64,{base64.b64encode(data).decode()}"


@functools.cache
def _base(kind: Kind, variant: int) -> Image.Image:
    rng = random.Random(f"{kind} {variant}")
    if kind == "photograph":
        return _photograph(rng, variant)
    if kind == "document":
        return _document(rng)
    if kind == "chart":
        return _chart(rng)
    if kind == "flat":
        return Image.new("RGB", SIZE, (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    noise = np.random.default_rng(variant).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _downscaled(data: bytes, share: float, subtype: str) -> bytes:
    picture = Image.open(io.BytesIO(data))
    buffer = io.BytesIO()
    picture.resize((int(picture.width * share), int(picture.height * share))).save(buffer, subtype.upper())
    return buffer.getvalue()


def _photograph(rng: random.Random, variant: int) -> Image.Image:
    with Image.open(PHOTOGRAPHS[variant % len(PHOTOGRAPHS)]) as opened:
        photograph = opened.convert("RGB")
    width, height = photograph.size
    share = rng.uniform(0.7, 1.0)
    left, top = rng.uniform(0, 1 - share) * width, rng.uniform(0, 1 - share) * height
    return photograph.resize(SIZE, box=(left, top, left + share * width, top + share * height))


def _document(rng: random.Random) -> Image.Image:
    page = Image.new("RGB", SIZE, (252, 252, 248))
    draw = ImageDraw.Draw(page)
    draw.text((40, 24), f"{rng.choice(_WORDS).upper()} {rng.randrange(10000):04d}", _INK, ImageFont.load_default(28))
    font = ImageFont.load_default(14)
    for y in range(76, SIZE[1] - 30, 20):
        words = " ".join(rng.choice(_WORDS) for _ in range(9))
        draw.text((40, y), f"{words}  {rng.uniform(0, 9999):.2f}", _INK, font)
    return page


def _chart(rng: random.Random) -> Image.Image:
    chart = Image.new("RGB", SIZE, (255, 255, 255))
    draw = ImageDraw.Draw(chart)
    draw.text((60, 14), f"{rng.choice(_WORDS)} by {rng.choice(_WORDS)}", _INK, ImageFont.load_default(22))
    base, bars = SIZE[1] - 50, rng.randrange(4, 9)
    width = (SIZE[0] - 120) // bars
    for index in range(bars):
        height = rng.randrange(20, base - 60)
        left = 70 + index * width
        colour = (rng.randrange(40, 220), rng.randrange(40, 220), rng.randrange(40, 220))
        draw.rectangle((left, base - height, left + width - 12, base), colour)
        draw.text((left, base + 6), rng.choice(_WORDS)[:6], _INK, ImageFont.load_default(12))
    draw.line((60, 50, 60, base, SIZE[0] - 30, base), _INK, 2)
    return chart
