"""A decoded picture to the encoder's uint8 input: the same bytes as the checkpoint's Hugging Face processor makes, but
for roundings in the largest pictures, so that none takes much memory.

Rescaling and normalisation are left to the device; one uint8 map is a quarter of the float32 one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, ...]
"""Left, top, right and bottom, in relative coordinates."""

_MAX_INTERMEDIATE_PIXELS = 32_000_000
"""A long thin picture, scaled by its short side, would pass through an image this many times larger than what the crop
keeps. Above this only the cropped part is computed, which can differ by rounding unless the scale is a whole number."""


_MAX_PADDED_SIDE = 8_000
"""Pixels. A picture with a longer side is scaled down to it before it is padded to a square, or a line of 1 x 60,000
pixels would become a square of 14 GB; what is padded first and scaled once can differ by rounding from that."""

_LARGEST_SUPPORT = 5
"""Pixels that any of PIL's filters looks at on either side. Nothing farther away is handed to PIL: of a picture over a
hundred times as tall as wide it would scale the columns first, which rounds otherwise than Hugging Face's way."""


@dataclass(frozen=True)
class Preprocessor:
    """Resize, then crop, with PIL, as `CLIPImageProcessor` and `SiglipImageProcessor` do with their PIL backend.

    Attributes:
        height, width: size of the result in pixels.
        shortest_edge: the picture's short side is scaled to this and the centre is cropped; None scales both sides to
            ``height`` and ``width``, changing the aspect ratio.
        resample: PIL's resampling filter.
        pad_value: RGB of the border when pictures are padded to squares first; None if they are not.
        scale, mean, std: what the device applies, ``(pixel * scale - mean) / std`` per channel.
    """

    height: int
    width: int
    shortest_edge: int | None
    resample: Image.Resampling
    pad_value: tuple[int, int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_processor(cls, processor: object) -> "Preprocessor":
        """Read a Hugging Face image processor's settings.

        Raises:
            ValueError: it does something that is not reproduced here; the message says what.
        """

        def setting(name: str, default: object = None) -> object:
            value = getattr(processor, name, default)
            return default if value is None else value

        size = _sizes(setting("size", {}))
        crop = _sizes(setting("crop_size", {})) if setting("do_center_crop", False) else {}
        crop = {name: crop[name] for name in ("height", "width") if name in crop}
        if not setting("do_resize", True):
            raise ValueError("image processors that do not resize are not supported")
        shortest = size.get("shortest_edge")
        if shortest is not None and not {"height", "width"} <= crop.keys():
            raise ValueError("an image processor that scales by the shortest edge must crop to a fixed size")
        if size.keys() not in ({"shortest_edge"}, {"height", "width"}):
            raise ValueError(f"image processor size {size} is not supported; need shortest_edge or height and width")
        if shortest is None and crop and crop != size:
            raise ValueError(f"an image processor that scales to {size} and then crops to {crop} is not supported")
        target = crop or size
        mean = _floats(setting("image_mean", (0.0, 0.0, 0.0)) if setting("do_normalize", True) else (0.0, 0.0, 0.0))
        std = _floats(setting("image_std", (1.0, 1.0, 1.0)) if setting("do_normalize", True) else (1.0, 1.0, 1.0))
        padded = bool(setting("do_pad", False))
        if padded and not hasattr(processor, "pad_to_square"):
            raise ValueError(
                "image processors that pad otherwise than LLaVA's, to a square before resizing, are not supported"
            )
        border = _floats(setting("image_mean", (0.0, 0.0, 0.0))) if padded else ()
        return cls(
            height=target["height"],
            width=target["width"],
            shortest_edge=shortest,
            resample=Image.Resampling(int(str(int(setting("resample", 3))))),  # type: ignore[call-overload]
            pad_value=(int(border[0] * 255), int(border[1] * 255), int(border[2] * 255)) if padded else None,
            scale=float(setting("rescale_factor", 1 / 255)) if setting("do_rescale", True) else 1.0,  # type: ignore[arg-type]
            mean=mean,
            std=std,
        )

    @property
    def normalisation(self) -> list[list[float]]:
        """``[[scale], mean, std]``, as the worker is told."""
        return [[self.scale], list(self.mean), list(self.std)]

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Preprocess one picture. Thread-safe; PIL gives up the interpreter lock while it resamples.

        Returns:
            ``(3, height, width)`` channels, rows, columns.
        """
        if picture.mode != "RGB":  # Converting to the same mode would copy the whole picture.
            picture = picture.convert("RGB")
        if self.pad_value is not None:
            picture = _padded_to_square(picture, self.pad_value)
        if self.shortest_edge is None:
            resized = picture.resize((self.width, self.height), self.resample)
        else:
            resized = self._scaled_and_cropped(picture, self.shortest_edge)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def place(self, box: Box, size: tuple[int, int]) -> Box:
        """Where a box of a picture lies in the encoder's input, both in relative coordinates.

        Args:
            box: left, top, right and bottom as shares of the picture's width and height.
            size: the picture's width and height in pixels.

        Returns:
            shares of the input's width and height; below 0 or above 1 what is cropped away.
        """
        width, height = size
        left = top = 0
        if self.pad_value is not None:
            side = max(size)
            left, top = (side - width) // 2, (side - height) // 2
            box = tuple(
                (offset + share * length) / side
                for share, offset, length in zip(box, (left, top) * 2, size * 2, strict=True)
            )
            width = height = side
        if self.shortest_edge is None:
            return box
        scaled = _scaled((width, height), self.shortest_edge)
        cropped = (scaled[0] - self.width) // 2, (scaled[1] - self.height) // 2
        target = self.width, self.height
        return tuple(
            (share * scaled[axis % 2] - cropped[axis % 2]) / target[axis % 2] for axis, share in enumerate(box)
        )

    def _scaled_and_cropped(self, picture: Image.Image, shortest_edge: int) -> Image.Image:
        width, height = picture.size
        scaled = _scaled(picture.size, shortest_edge)
        left, top = (scaled[0] - self.width) // 2, (scaled[1] - self.height) // 2
        crop = (left, top, left + self.width, top + self.height)
        if scaled[0] * scaled[1] <= _MAX_INTERMEDIATE_PIXELS:
            return picture.resize(scaled, self.resample).crop(crop)
        across, down = width / scaled[0], height / scaled[1]
        box = (crop[0] * across, crop[1] * down, crop[2] * across, crop[3] * down)
        margin = math.ceil(_LARGEST_SUPPORT * max(across, down, 1))
        left, top = max(0, int(box[0]) - margin), max(0, int(box[1]) - margin)
        part = picture.crop(
            (left, top, min(width, math.ceil(box[2]) + margin), min(height, math.ceil(box[3]) + margin))
        )
        box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        return part.resize((self.width, self.height), self.resample, box=box)


def _scaled(size: tuple[int, int], shortest_edge: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return shortest_edge, int(shortest_edge * height / width)
    return int(shortest_edge * width / height), shortest_edge


def _sizes(size: object) -> dict[str, int]:
    items = size.items() if isinstance(size, dict) else vars(size).items()
    return {str(name): int(value) for name, value in items if value is not None}


def _floats(values: object) -> tuple[float, ...]:
    if not isinstance(values, Sequence):
        raise ValueError(f"expected one number per channel, got {values!r}")
    return tuple(float(value) for value in values)


def _padded_to_square(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    if (scale := _MAX_PADDED_SIDE / max(picture.size)) < 1:
        width, height = (max(1, round(length * scale)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    width, height = picture.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square
