"""Pictures for the tests, from nearly empty to dense, and how OpenAI's API takes them."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZES = [
    (336, 336),
    (640, 480),
    (480, 640),
    (100, 80),
    (800, 200),
    (37, 61),
    (1024, 768),
    (336, 500),
    (90, 90),
    (299, 301),
]


def flat(size: tuple[int, int] = (400, 300), colour: tuple[int, int, int] = (90, 120, 160)) -> Image.Image:
    return Image.new("RGB", size, colour)


def noise(seed: int = 0, size: tuple[int, int] = (400, 300)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scene(seed: int) -> Image.Image:
    """Shapes on a gradient; the number of shapes grows with the seed."""
    rng = np.random.default_rng(seed)
    width, height = SIZES[seed % len(SIZES)]
    ramp = np.linspace(rng.integers(0, 128), rng.integers(128, 256), width)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(1 + seed):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        side = int(rng.integers(4, max(5, min(width, height) // 2)))
        draw.ellipse((x, y, x + side, y + side), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return picture


def data_url(picture: Image.Image, file_format: str = "PNG") -> str:
    return bytes_url(encoded(picture, file_format))


def encoded(picture: Image.Image, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format)
    return buffer.getvalue()


def bytes_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def part(picture: Image.Image | str, detail: str | None = None) -> dict[str, Any]:
    """One picture of a message's content."""
    url = picture if isinstance(picture, str) else data_url(picture)
    return {"type": "image_url", "image_url": {"url": url} if detail is None else {"url": url, "detail": detail}}


def message(*pictures: Image.Image | str, text: str = "What is this?") -> list[dict[str, Any]]:
    """A conversation of one message: pictures, then a question."""
    return [{"role": "user", "content": [*map(part, pictures), {"type": "text", "text": text}]}]
