"""Pictures on their way to a server: where they are, and how they travel."""

import base64
import binascii
import io
import mimetypes
from pathlib import Path

import httpx
from PIL import Image

Source = str | bytes
"""Encoded bytes, or a string: a path, an http(s) URL, a data URL or bare base64."""

_LONGEST_PATH = 1024


def is_remote(source: Source) -> bool:
    """Whether the server may fetch it by itself."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def located(source: Source, folder: Path) -> Source:
    """The source with a relative path made relative to ``folder``; base64 and URLs as they are."""
    if isinstance(source, bytes) or is_remote(source) or source.startswith("data:") or len(source) > _LONGEST_PATH:
        return source
    path = folder / source
    return str(path) if path.is_file() or not _is_base64(source) else source


def _is_base64(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) > 16
    except (binascii.Error, ValueError):
        return False


def read(source: Source) -> bytes:
    """The encoded picture.

    Raises:
        OSError: the file or URL cannot be read.
        ValueError: it is neither a file nor base64.
    """
    if isinstance(source, bytes):
        return source
    if is_remote(source):
        try:
            return httpx.get(source, follow_redirects=True, timeout=60).raise_for_status().content
        except httpx.HTTPError as error:
            raise OSError(f"{source}: {error}") from error
    if source.startswith("data:"):
        return base64.b64decode(source.partition(",")[2])
    if len(source) <= _LONGEST_PATH and (not _is_base64(source) or Path(source).is_file()):
        return Path(source).read_bytes()
    return base64.b64decode(source, validate=True)


def opened(source: Source) -> Image.Image:
    """The decoded picture as RGB."""
    return Image.open(io.BytesIO(read(source))).convert("RGB")


def upload_url(source: Source) -> str:
    """What is sent: URLs as they are, all else as a data URL of the unchanged bytes."""
    if isinstance(source, str) and (is_remote(source) or source.startswith("data:")):
        return source
    data = read(source)
    kind = None if isinstance(source, bytes) else mimetypes.guess_type(source)[0]
    if kind is None:
        kind = Image.MIME.get(Image.open(io.BytesIO(data)).format or "PNG", "image/png")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def data_url(picture: Image.Image) -> str:
    """A picture as PNG, so that nothing but the wanted change is done to it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(data: bytes, side: int = 360, quality: int = 82) -> bytes:
    """A JPEG no larger than ``side`` pixels, for a page that holds many."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
