"""Drawing primitives of the procedural pictures: backgrounds, shapes, printed text, gauges and surface defects.

Every function takes the random generator that it may use, so a picture is a pure function of its seed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 336
Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (205, 35, 35),
    "orange": (242, 140, 20),
    "yellow": (245, 225, 45),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "purple": (145, 50, 175),
    "black": (22, 22, 22),
    "white": (245, 245, 245),
    "gray": (135, 135, 135),
}
INKS = [name for name in COLORS if name != "gray"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
PATTERNS = ["plain", "gradient", "stripes", "dots", "checks", "noise"]
DEFECTS = ["scratch", "crack", "hole", "stain"]
SURFACES = ["metal", "wood", "fabric", "stone"]
_DIAL_START, _DIAL_SWEEP = 135.0, 270.0


class Glyph(NamedTuple):
    """One printed character and its box (left, top, right, bottom), relative to its text."""

    char: str
    box: tuple[float, float, float, float]


def jitter(rng: Random, color: Rgb, amount: int = 12) -> Rgb:
    """The colour moved by at most ``amount`` in each channel."""
    red, green, blue = (min(255, max(0, channel + rng.randint(-amount, amount))) for channel in color)
    return red, green, blue


def shade(color: Rgb, factor: float) -> Rgb:
    """The colour mixed with white (``factor`` > 0) or black (< 0)."""
    end = 255 if factor > 0 else 0
    red, green, blue = (round(channel + (end - channel) * abs(factor)) for channel in color)
    return red, green, blue


def contrasting(rng: Random, background: str) -> str:
    """The name of an ink that stands out against the named background."""
    base = COLORS[background]
    return rng.choice([name for name in INKS if math.dist(COLORS[name], base) > 120])


def print_ink(rng: Random, background: str) -> str:
    """The name of an ink for print: black or white as the background asks, at times a colour."""
    if rng.random() < 0.25:
        return contrasting(rng, background)
    red, green, blue = COLORS[background]
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 100 else "white"


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Gaussian noise, int16 (512, 512, 3), standard deviation 64."""
    return (np.random.default_rng(0).standard_normal((512, 512, 3)) * 64).astype(np.int16)


@lru_cache(maxsize=1)
def _surface_bank() -> dict[str, Image.Image]:
    """Grey 512 x 512 textures by surface name."""
    random = np.random.default_rng(1)
    down, across = np.mgrid[0:512, 0:512].astype(np.float32)
    lines = np.repeat(random.standard_normal((512, 1)), 512, axis=1) + 0.3 * random.standard_normal((512, 512))
    rings = np.sin(down / 7 + 2.5 * np.sin(across / 90) + 1.2 * np.sin(down / 31)) + 0.2 * lines
    weave = np.sin(across * math.pi / 4) + np.sin(down * math.pi / 4) + 0.3 * random.standard_normal((512, 512))
    coarse = Image.fromarray((random.random((64, 64)) * 255).astype(np.uint8)).resize(
        (512, 512), Image.Resampling.BICUBIC
    )
    grain = np.asarray(coarse, dtype=np.float32) / 90 + 0.4 * random.standard_normal((512, 512))
    bank = {}
    for name, texture in zip(SURFACES, (lines, rings, weave, grain), strict=True):
        scaled = (texture - texture.min()) / (texture.max() - texture.min()) * 255
        bank[name] = Image.fromarray(scaled.astype(np.uint8))
    return bank


def _crop(rng: Random, image: Image.Image) -> Image.Image:
    left, top = rng.randint(0, image.width - SIDE), rng.randint(0, image.height - SIDE)
    return image.crop((left, top, left + SIDE, top + SIDE))


def add_noise(rng: Random, image: Image.Image, sigma: float) -> Image.Image:
    """Sensor-like Gaussian noise of the given standard deviation (in grey levels)."""
    left, top = rng.randint(0, 512 - SIDE), rng.randint(0, 512 - SIDE)
    noise = _noise_bank()[top : top + SIDE, left : left + SIDE]
    noisy = np.asarray(image, dtype=np.int16) + ((noise * round(sigma)) >> 6)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _pattern_mask(rng: Random, pattern: str) -> Image.Image:
    """Grey mask (336 x 336) between a background's two shades."""
    if pattern == "gradient":
        size = 476
        ramp = Image.linear_gradient("L").resize((size, size)).rotate(rng.choice([0, 45, 90, 135, 180, 225, 270, 315]))
        edge = (size - SIDE) // 2
        return ramp.crop((edge, edge, edge + SIDE, edge + SIDE))
    across, down = np.meshgrid(np.arange(SIDE, dtype=np.float32), np.arange(SIDE, dtype=np.float32))
    period, angle = rng.uniform(18, 44), rng.choice([0.0, 45.0, 90.0, 135.0]) + rng.uniform(-10, 10)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, beside = (across * cosine + down * sine) / period, (down * cosine - across * sine) / period
    if pattern == "stripes":
        mask = along % 1 < 0.5
    elif pattern == "checks":
        mask = (along % 1 < 0.5) ^ (beside % 1 < 0.5)
    else:
        mask = (along % 1 - 0.5) ** 2 + (beside % 1 - 0.5) ** 2 < 0.07
    return Image.fromarray(mask.astype(np.uint8) * 255)


def background(rng: Random, color: str, pattern: str) -> Image.Image:
    """A 336 x 336 RGB background of the named colour and pattern."""
    base = jitter(rng, COLORS[color])
    picture = Image.new("RGB", (SIDE, SIDE), base)
    if pattern == "plain":
        return picture
    if pattern == "noise":
        return add_noise(rng, Image.new("RGB", (SIDE, SIDE), shade(base, -0.1)), rng.uniform(24, 44))
    strength = rng.uniform(0.25, 0.4)
    darker = color in ("white", "yellow") or (color not in ("black",) and rng.random() < 0.5)
    other = Image.new("RGB", (SIDE, SIDE), shade(base, -strength if darker else strength))
    return Image.composite(other, picture, _pattern_mask(rng, pattern))


def surface(rng: Random, name: str, color: Rgb) -> Image.Image:
    """A 336 x 336 RGB picture of a material's surface."""
    mask = _crop(rng, _surface_bank()[name])
    strength = rng.uniform(0.12, 0.3)
    light = Image.new("RGB", (SIDE, SIDE), shade(color, strength))
    return Image.composite(light, Image.new("RGB", (SIDE, SIDE), shade(color, -strength)), mask)


def _corners(count: int, radius: float, inner: float, turn: float, center: float) -> list[tuple[float, float]]:
    """Corners of a regular polygon (``inner`` = 1) or of a star, clockwise."""
    steps = count if inner == 1 else 2 * count
    points = []
    for step in range(steps):
        reach = radius if inner == 1 or step % 2 == 0 else radius * inner
        angle = math.radians(turn + 360 * step / steps - 90)
        points.append((center + reach * math.cos(angle), center + reach * math.sin(angle)))
    return points


def shape_mask(rng: Random, shape: str, size: int) -> Image.Image:
    """Antialiased mask, L (size, size), of the named shape."""
    scale = 3
    full = size * scale
    mask = Image.new("L", (full, full), 0)
    draw = ImageDraw.Draw(mask)
    center, radius, turn = full / 2, full / 2 - 1, rng.uniform(-12, 12)
    if shape == "circle":
        draw.ellipse((1, 1, full - 2, full - 2), fill=255)
    elif shape == "ring":
        draw.ellipse((1, 1, full - 2, full - 2), outline=255, width=round(full * rng.uniform(0.16, 0.22)))
    elif shape == "square":
        draw.polygon(_corners(4, radius, 1, 45 + turn, center), fill=255)
    elif shape == "triangle":
        draw.polygon(_corners(3, radius, 1, turn, center), fill=255)
    elif shape == "star":
        draw.polygon(_corners(5, radius, 0.42, turn, center), fill=255)
    else:
        half, arm = full * 0.48, full * rng.uniform(0.11, 0.15)
        draw.rectangle((center - half, center - arm, center + half, center + arm), fill=255)
        draw.rectangle((center - arm, center - half, center + arm, center + half), fill=255)
        mask = mask.rotate(turn, resample=Image.Resampling.BILINEAR)
    return mask.reduce(scale)


@lru_cache(maxsize=256)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in scalable typeface at ``size`` pixels."""
    found = ImageFont.load_default(size=size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which the printed pictures need")
    return found


def text_mask(rng: Random, text: str, size: int) -> tuple[Image.Image, list[Glyph]]:
    """Mask (L) of printed text and its glyphs' boxes; stroke, spacing and width vary with ``rng``."""
    face = font(size)
    stroke = rng.choice([0, 0, max(1, size // 30)]) if size >= 24 else rng.choice([0, 0, 1])
    spacing = rng.uniform(0.0, 0.08) * size + 2 * stroke
    left, glyphs = 2.0 + stroke, []
    for char in text:
        ink = face.getbbox(char)
        glyphs.append(Glyph(char, (left + ink[0], ink[1] + 2 + stroke, left + ink[2], ink[3] + 2 + stroke)))
        left += face.getlength(char) + spacing
    width, height = math.ceil(left + 2 + stroke), math.ceil(max(glyph.box[3] for glyph in glyphs) + 3 + stroke)
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)
    for glyph, ink_left in ((glyph, face.getbbox(glyph.char)[0]) for glyph in glyphs):
        draw.text((glyph.box[0] - ink_left, 2 + stroke), glyph.char, font=face, fill=255, stroke_width=stroke)
    top = math.floor(min(glyph.box[1] for glyph in glyphs)) - 2
    top = max(0, top)
    mask = mask.crop((0, top, width, height))
    stretch = rng.uniform(0.88, 1.15)
    mask = mask.resize((max(1, round(width * stretch)), height - top), Image.Resampling.BILINEAR)
    moved = [Glyph(char, (box[0] * stretch, box[1] - top, box[2] * stretch, box[3] - top)) for char, box in glyphs]
    return mask, moved


def gauge(rng: Random, value: int, diameter: int) -> tuple[Image.Image, Image.Image]:
    """A dial from 0 (lower left) to 100 (lower right), clockwise: its RGB picture and its mask."""
    scale = 2
    full = diameter * scale
    dark_face = rng.random() < 0.3
    face, ink = ((28, 28, 32), (235, 235, 235)) if dark_face else ((248, 248, 244), (25, 25, 25))
    needle = jitter(rng, COLORS[rng.choice(["red", "blue", "orange", "white" if dark_face else "black"])])
    picture, mask = Image.new("RGB", (full, full), face), Image.new("L", (full, full), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, full - 1, full - 1), fill=255)
    draw = ImageDraw.Draw(picture)
    center, radius = full / 2, full / 2
    draw.ellipse((0, 0, full - 1, full - 1), outline=(90, 90, 95), width=max(2, full // 40))

    def point(reading: float, reach: float) -> tuple[float, float]:
        angle = math.radians(_DIAL_START + _DIAL_SWEEP * reading / 100)
        return center + radius * reach * math.cos(angle), center + radius * reach * math.sin(angle)

    for tick in range(0, 101, 10):
        major = tick % 50 == 0
        draw.line(
            (point(tick, 0.72 if major else 0.8), point(tick, 0.92)),
            fill=ink,
            width=max(2, full // (35 if major else 60)),
        )
    draw.line((point(value, -0.15), point(value, 0.76)), fill=needle, width=max(4, full // rng.randint(20, 30)))
    hub = radius * 0.09
    draw.ellipse((center - hub, center - hub, center + hub, center + hub), fill=ink)
    return picture.reduce(scale), mask.reduce(scale)


def defect_mask(rng: Random, kind: str, tiny: bool) -> Image.Image:
    """Mask (L) of one defect; its size says how far it reaches."""
    if kind == "hole":
        size = rng.randint(5, 8) if tiny else rng.randint(14, 34)
    elif kind == "stain":
        size = rng.randint(10, 14) if tiny else rng.randint(44, 90)
    else:
        size = rng.randint(14, 22) if tiny else rng.randint(50, 120)
    scale = 2
    full = size * scale
    mask = Image.new("L", (full, full), 0)
    draw = ImageDraw.Draw(mask)
    if kind == "hole":
        draw.ellipse((1, 1, full - 2, full - 2), fill=255)
    elif kind == "stain":
        for _ in range(5):
            radius = full * rng.uniform(0.16, 0.26)
            across, down = rng.uniform(radius, full - radius), rng.uniform(radius, full - radius)
            across, down = (across + full / 2) / 2, (down + full / 2) / 2
            draw.ellipse((across - radius, down - radius, across + radius, down + radius), fill=150)
    else:
        angle, width = rng.uniform(0, math.tau), (2 if tiny else rng.randint(3, 5))
        reach, bend = full / 2 - 3, (0.0 if kind == "scratch" else full * 0.12)
        points = []
        for step in range(7):
            along, aside = reach * (step / 3 - 1), rng.uniform(-bend, bend)
            points.append(
                (
                    full / 2 + along * math.cos(angle) - aside * math.sin(angle),
                    full / 2 + along * math.sin(angle) + aside * math.cos(angle),
                )
            )
        draw.line(points, fill=255, width=width)
    return mask.reduce(scale)
