"""Videos for the tests, written frame by frame, and how vLLM's chat API takes them."""

import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

Container = Literal["mp4", "webm", "gif"]
_CODECS = {"mp4": "mp4v", "webm": "VP80"}


def almost_still(picture: Image.Image, frames: int) -> list[Image.Image]:
    """One picture again and again, but for one pixel: PIL writes equal frames of a GIF as one."""
    copies = [picture.convert("RGB") for _ in range(frames)]
    for index, copy in enumerate(copies):
        copy.putpixel((index, 0), (index, 0, 0))
    return copies


def written(frames: Sequence[Image.Image], container: Container = "mp4", fps: float = 10) -> bytes:
    """A video file of frames of one size."""
    if container == "gif":
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
        return buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{container}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_CODECS[container]), fps, frames[0].size)
        assert writer.isOpened()
        for frame in frames:
            writer.write(cv2.cvtColor(np.asarray(frame.convert("RGB")), cv2.COLOR_RGB2BGR))
        writer.release()
        return path.read_bytes()


def video_url(data: bytes, container: Container = "mp4") -> str:
    kind = "image/gif" if container == "gif" else f"video/{container}"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def video_part(url: str, detail: str | None = None) -> dict[str, Any]:
    """One video of a message's content."""
    return {"type": "video_url", "video_url": {"url": url} if detail is None else {"url": url, "detail": detail}}
