"""A picture's content: the same whether it comes as a file, an array or a tensor."""

import hashlib
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from vllm.connections import HTTPResponseSizeExceededError, MediaDownloadSizeExceededError
from vllm.exceptions import VLLMClientError
from vllm.multimodal.image import convert_image_mode, normalize_image, open_image
from vllm.multimodal.media import ImageMediaIO, MediaWithBytes

from server.errors import PictureError

_TOO_LARGE = (Image.DecompressionBombError, HTTPResponseSizeExceededError, MediaDownloadSizeExceededError)

_ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class PictureFile:
    """A picture's file, decoded when and where its pixels are wanted: one whose features are cached is not.

    Its header is read at once, so that what is no picture is refused before any work on the request.

    Args:
        data: the file.
        reader: decodes it.

    Attributes:
        key: identity of the content, and of the way in which it is decoded.

    Raises:
        PIL.UnidentifiedImageError: it is no picture.
        PIL.Image.DecompressionBombError: it is far too large.
    """

    def __init__(self, data: bytes, reader: ImageMediaIO) -> None:
        self._data = data
        self._reader = reader
        self._size = _size_in_header(data)
        self.key = _digest(repr((reader.image_mode, reader.rgba_background_color)).encode(), data)

    def decoded(self) -> Image.Image:
        """The picture, decoded anew each time.

        Raises:
            PictureError: it cannot be decoded, or is too large; without an index.
        """
        try:
            picture: Image.Image = self._reader.load_bytes(self._data).media
        except Exception as error:
            raise unreadable(None, error, "decode") from error
        return picture

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels. Decodes a picture in a format other than JPEG the first time.

        Raises:
            PictureError: as `decoded` does.
        """
        if self._size is None:
            self._size = self.decoded().size
        return self._size


def _size_in_header(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG picture turned upright; of other formats None, as some tell only when decoded."""
    picture = open_image(BytesIO(data))
    if picture.format != "JPEG":
        return None
    orientation = 1
    with suppress(Exception):  # As vLLM has it: what cannot be read does not turn the picture.
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    width, height = picture.size
    return (height, width) if orientation in _ON_ITS_SIDE else (width, height)


def content_key(image: Any) -> bytes:
    """Identity of a picture's content: of its file's bytes where they are known, else of its pixels."""
    if isinstance(image, PictureFile):
        return image.key
    if isinstance(image, MediaWithBytes):
        return _digest(repr(image.io_config).encode(), image.original_bytes)
    picture = as_pil(image)
    return _digest(repr(picture.size).encode(), picture.tobytes())


def _digest(how: bytes, data: bytes) -> bytes:
    digest = hashlib.blake2b(how, digest_size=16)
    digest.update(data)
    return digest.digest()


def as_pil(image: Any) -> Image.Image:
    """A picture as vLLM hands it over, or as offline callers may pass it, as a PIL image.

    Args:
        image: a file; a PIL image with its file's bytes; one without, which is turned upright, and put on white where
            it is transparent, as vLLM does with files; or a uint8 array or tensor ``(rows, columns, channels)``.

    Raises:
        PictureError: it is a file that cannot be decoded.
        TypeError: it is something else.
    """
    if isinstance(image, PictureFile):
        return image.decoded()
    if isinstance(image, MediaWithBytes):
        return image.media
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a picture, got {type(image).__name__}")
    return convert_image_mode(normalize_image(image), "RGB")


def size_of(image: Any) -> tuple[int, int]:
    """Width and height of a picture in pixels.

    Raises:
        PictureError, TypeError: as `as_pil` does.
    """
    return image.size if isinstance(image, PictureFile) else as_pil(image).size


def unreadable(index: int | None, error: Exception, reason: str) -> PictureError:
    """What is said of a picture, or a video's file, that could not be fetched or decoded.

    Args:
        index: of the picture in its request, if it is known.
        reason: unless the picture is too large.
    """
    message = str(error.args[0]) if isinstance(error, VLLMClientError) and error.args else str(error)
    message = message or type(error).__name__
    if "cannot identify image file" in message:
        message = "its data is not a picture in a format that can be read"
    if isinstance(error, _TOO_LARGE) or isinstance(error.__cause__, _TOO_LARGE) or "exceed the maximum" in message:
        reason = "too_large"
    return PictureError(index, reason, message)
