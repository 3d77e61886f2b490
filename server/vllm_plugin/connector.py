"""vLLM's media connector for our models: pictures stay files, and errors say which picture of the request is meant."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pybase64
from vllm import envs
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO, MediaConnector
from vllm.multimodal.media.base import MediaIO

from server.encoding.content import PictureFile, unreadable
from server.errors import PictureError

_urls: ContextVar[Sequence[str] | None] = ContextVar("urls", default=None)


@contextmanager
def reading(urls: Sequence[str]) -> Iterator[None]:
    """Within, pictures are taken as files, to be decoded later, and errors name a picture by its place among these."""
    token = _urls.set(urls)
    try:
        yield
    finally:
        _urls.reset(token)


class PictureFileIO(MediaIO[PictureFile]):
    """Takes a picture's file as it is; vLLM's reader decodes it where its pixels are wanted."""

    def __init__(self, reader: ImageMediaIO) -> None:
        self._reader = reader

    def get_max_bytes(self) -> int | None:
        return self._reader.get_max_bytes()

    def load_bytes(self, data: bytes) -> PictureFile:
        return PictureFile(data, self._reader)

    def load_base64(self, media_type: str, data: str) -> PictureFile:
        return self.load_bytes(pybase64.b64decode(data, validate=True))

    def load_file(self, filepath: Path) -> PictureFile:
        return self.load_bytes(filepath.read_bytes())


@MEDIA_CONNECTOR_REGISTRY.register("http")
class DfmrMediaConnector(MediaConnector):
    """Takes the place of upstream's default connector; one that the operator chose by name is left alone.

    Outside of `reading` it gives what upstream's gives, and errors without an index.
    """

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        try:
            if _urls.get() is None:
                return super().fetch_image(image_url, image_mode=image_mode)
            return self.load_from_url(image_url, self._file_io(image_mode), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)
        except Exception as error:
            raise _picture_error(image_url, error) from error

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        try:
            if _urls.get() is None:
                return await super().fetch_image_async(image_url, image_mode=image_mode)
            return await self.load_from_url_async(
                image_url, self._file_io(image_mode), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT
            )
        except Exception as error:
            raise _picture_error(image_url, error) from error

    def _file_io(self, image_mode: str | None) -> PictureFileIO:
        return PictureFileIO(ImageMediaIO(**{"image_mode": image_mode, **self.media_io_kwargs.get("image", {})}))


def _picture_error(url: str, error: Exception) -> PictureError:
    index = next((i for i, known in enumerate(_urls.get() or ()) if known is url or known == url), None)
    return unreadable(index, error, "decode" if url[:5].lower() == "data:" else "fetch")
