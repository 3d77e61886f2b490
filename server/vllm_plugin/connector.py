"""vLLM's media connector, with errors that say which picture of the request is meant."""

from collections.abc import Sequence
from contextvars import ContextVar

from PIL import Image
from vllm.exceptions import VLLMClientError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from server.errors import PictureError

picture_urls: ContextVar[Sequence[str]] = ContextVar("picture_urls", default=())
"""URLs of the pictures of the request that is being read, in order."""


@MEDIA_CONNECTOR_REGISTRY.register("http")
class DfmrMediaConnector(MediaConnector):
    """Takes the place of upstream's default connector; one that the operator chose by name is left alone."""

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
        try:
            return super().fetch_image(image_url, image_mode=image_mode)
        except Exception as error:
            raise _picture_error(image_url, error) from error

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
        try:
            return await super().fetch_image_async(image_url, image_mode=image_mode)
        except Exception as error:
            raise _picture_error(image_url, error) from error


def _picture_error(url: str, error: Exception) -> PictureError:
    urls = picture_urls.get()
    index = next((i for i, known in enumerate(urls) if known is url or known == url), None)
    message = str(error.args[0]) if isinstance(error, VLLMClientError) and error.args else str(error)
    message = message or type(error).__name__
    if "cannot identify image file" in message:
        message = "its data is not a picture in a format that can be read"
    if isinstance(error, Image.DecompressionBombError) or "exceed the maximum" in message:
        return PictureError(index, "too_large", message)
    reason = "decode" if url[:5].lower() == "data:" else "fetch"
    return PictureError(index, reason, message)
