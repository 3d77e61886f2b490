"""What happens to pictures in the field, with strengths, and the same each time for the same seed.

Sizes are relative to the picture, so that a strength means the same at any resolution.
"""

import io
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

Rng = np.random.Generator

ENCODER_SIDE = 336
"""Pixels of the side of LLaVA-1.5's encoder input; blur radii and the downscaled control refer to it."""


class Change(NamedTuple):
    """A named change to a picture before upload, and how much of it."""

    name: str
    amount: float

    def __str__(self) -> str:
        return f"{self.name}:{self.amount:g}"

    @classmethod
    def parse(cls, text: str) -> "Change":
        """``noise:20`` and the like; ValueError for an unknown name."""
        name, _, amount = text.partition(":")
        if name not in CHANGES:
            raise ValueError(f"unknown condition {name!r}; there are {', '.join(CHANGES)}")
        return cls(name, float(amount))


def noise(picture: Image.Image, sigma: float, rng: Rng) -> Image.Image:
    """Gaussian sensor noise of standard deviation ``sigma`` (of 255), each channel for itself."""
    pixels = np.asarray(picture, np.float32)
    return _image(pixels + rng.normal(0, sigma, pixels.shape).astype(np.float32))


def blur(picture: Image.Image, radius: float, rng: Rng) -> Image.Image:
    """Gaussian blur; ``radius`` in pixels of a picture whose shorter side is 336."""
    return picture.filter(ImageFilter.GaussianBlur(radius * min(picture.size) / ENCODER_SIDE))


def darkness(picture: Image.Image, light: float, rng: Rng) -> Image.Image:
    """``light`` times the light, and the noise of a sensor that has little of it (read noise of 2 of 255)."""
    pixels = np.asarray(picture, np.float32) * light
    return _image(pixels + rng.normal(0, 2, pixels.shape).astype(np.float32))


def glare(picture: Image.Image, strength: float, rng: Rng) -> Image.Image:
    """A white reflection at a random place, a third of the picture wide; ``strength`` 1 saturates its middle."""
    width, height = picture.size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across, down = rng.uniform(0.25, 0.75, 2)
    radius = min(width, height) / 6
    spot = np.exp(-(((x - across * width) / radius) ** 2 + ((y - down * height) / radius) ** 2) / 2)
    share = np.clip(strength * spot, 0, 1)[..., None]
    return _image(np.asarray(picture, np.float32) * (1 - share) + 255 * share)


def jpeg(picture: Image.Image, quality: float, rng: Rng) -> Image.Image:
    """JPEG at ``quality`` and back."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def resolution(picture: Image.Image, share: float, rng: Rng) -> Image.Image:
    """Both sides at ``share`` of their pixels; the encoder enlarges the picture again."""
    return _resized(picture, picture.width * share, picture.height * share)


def rotation(picture: Image.Image, degrees: float, rng: Rng) -> Image.Image:
    """Turned left or right at random, whole, on a ground of the border's median colour."""
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(channel) for channel in np.median(border, 0))
    angle = degrees if rng.random() < 0.5 else -degrees
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(red, green, blue))


def aspect(picture: Image.Image, ratio: float, rng: Rng) -> Image.Image:
    """Stretched to ``ratio`` times its width or height at random. An encoder that crops to a square loses the ends."""
    if rng.random() < 0.5:
        return _resized(picture, picture.width * ratio, picture.height)
    return _resized(picture, picture.width, picture.height * ratio)


def downscale(picture: Image.Image, factor: float, rng: Rng) -> Image.Image:
    """As many pixels as pooling by ``factor`` leaves patches: the shorter side becomes 336 / ``factor``.

    A picture that is smaller already stays as it is. This is the change of the ``downscaled`` control.
    """
    shorter = ENCODER_SIDE / factor
    if min(picture.size) <= shorter:
        return picture
    share = shorter / min(picture.size)
    return _resized(picture, picture.width * share, picture.height * share)


CONDITIONS: dict[str, tuple[float, ...]] = {
    "noise": (10, 25, 50),
    "blur": (1, 2, 4),
    "darkness": (0.5, 0.25, 0.1),
    "glare": (0.5, 1, 2),
    "jpeg": (50, 15, 5),
    "resolution": (0.5, 0.25, 0.125),
    "rotation": (5, 10, 20),
    "aspect": (1.33, 1.78, 3),
}
"""Field conditions and their amounts, mild to severe."""

CHANGES: dict[str, Callable[[Image.Image, float, Rng], Image.Image]] = {
    "noise": noise,
    "blur": blur,
    "darkness": darkness,
    "glare": glare,
    "jpeg": jpeg,
    "resolution": resolution,
    "rotation": rotation,
    "aspect": aspect,
    "downscale": downscale,
}


def apply(change: Change, picture: Image.Image, seed: str) -> Image.Image:
    """The changed RGB picture; the same for the same change, picture and seed."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}/{change.name}".encode()))
    return CHANGES[change.name](picture, change.amount, rng)


def _image(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _resized(picture: Image.Image, width: float, height: float) -> Image.Image:
    return picture.resize((max(1, round(width)), max(1, round(height))), Image.Resampling.BICUBIC, reducing_gap=3)
