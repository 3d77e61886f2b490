"""``video_url`` parts of chat messages: fetched as vLLM fetches media, and put where chat templates expect a picture.

LLaVA's chat templates know pictures only. A video takes the place of one, and becomes as many as it needs to after the
template has done its work.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pybase64
from vllm import envs
from vllm.config import ModelConfig
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.base import MediaIO

from server.encoding.content import unreadable
from server.encoding.tasks import all_of
from server.encoding.video import Video
from server.errors import VideoError
from server.policy import Detail
from server.vllm_plugin.messages import detail_of


class VideoPart(NamedTuple):
    """A ``video_url`` part: where the file is, and OpenAI's ``detail``, which videos may have as pictures do."""

    url: str
    detail: Detail


class VideoFileIO(MediaIO[Video]):
    """Takes a video file as it is, within a bound on its size; it is decoded later, unless it is cached."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def get_max_bytes(self) -> int | None:
        return self._max_bytes

    def load_bytes(self, data: bytes) -> Video:
        self._check(len(data))
        return Video(data)

    def load_base64(self, media_type: str, data: str) -> Video:
        self._check(len(data) * 3 // 4 - 2)
        return self.load_bytes(pybase64.b64decode(data, validate=True))

    def load_file(self, filepath: Path) -> Video:
        self._check(filepath.stat().st_size)
        return self.load_bytes(filepath.read_bytes())

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise VideoError(
                None,
                "too_large",
                f"has {size} bytes, and this server takes {self._max_bytes}; send a shorter or smaller video",
            )


def video_parts(messages: Sequence[Any]) -> list[VideoPart]:
    """The videos in chat messages, in order.

    Raises:
        VideoError: a part has no URL, or a detail that does not exist.
    """
    found: list[VideoPart] = []
    for part in _parts(messages):
        if not _is_video(part):
            continue
        nested = part["video_url"] if isinstance(part["video_url"], Mapping) else {"url": part["video_url"]}
        detail: Any = detail_of(nested.get("detail") or part.get("detail") or "auto")
        if not nested.get("url"):
            raise VideoError(len(found), "missing", "has no url; send the video itself")
        if detail not in get_args(Detail):
            raise VideoError(
                len(found), "detail", f"detail must be one of {', '.join(get_args(Detail))}, not {detail!r}"
            )
        found.append(VideoPart(str(nested["url"]), detail))
    return found


def with_videos(messages: Sequence[Any], parts: Sequence[VideoPart], videos: Sequence[Video]) -> list[Any]:
    """The same messages with each video in place of its part, as vLLM takes a decoded picture."""
    following = iter(zip(parts, videos, strict=True))

    def replaced(part: Any) -> Any:
        if not (isinstance(part, Mapping) and _is_video(part)):
            return part
        asked, video = next(following)
        return {"image_pil": video, "detail": asked.detail}

    return [
        {**message, "content": [replaced(part) for part in message["content"]]} if _has_parts(message) else message
        for message in messages
    ]


def connector_of(model_config: ModelConfig) -> MediaConnector:
    """vLLM's media connector, with what the operator allows it to read."""
    connector: MediaConnector = MEDIA_CONNECTOR_REGISTRY.load(
        envs.VLLM_MEDIA_CONNECTOR,
        media_io_kwargs=model_config.multimodal_config.media_io_kwargs,
        allowed_local_media_path=model_config.allowed_local_media_path,
        allowed_media_domains=model_config.allowed_media_domains,
    )
    return connector


async def fetch_async(connector: MediaConnector, parts: Sequence[VideoPart], max_bytes: int) -> list[Video]:
    """The files of a request's videos; a failure of one ends the others.

    Raises:
        VideoError: one cannot be had or is too large; names its index.
    """
    io, timeout = VideoFileIO(max_bytes), envs.VLLM_VIDEO_FETCH_TIMEOUT

    async def one(index: int, part: VideoPart) -> Video:
        try:
            video: Video = await connector.load_from_url_async(part.url, io, fetch_timeout=timeout)
        except Exception as error:
            raise _video_error(index, part.url, error) from error
        return video

    return await all_of(one(index, part) for index, part in enumerate(parts))


def fetch(connector: MediaConnector, parts: Sequence[VideoPart], max_bytes: int) -> list[Video]:
    """`fetch_async`, blocking."""
    io, timeout = VideoFileIO(max_bytes), envs.VLLM_VIDEO_FETCH_TIMEOUT
    videos: list[Video] = []
    for index, part in enumerate(parts):
        try:
            videos.append(connector.load_from_url(part.url, io, fetch_timeout=timeout))
        except Exception as error:
            raise _video_error(index, part.url, error) from error
    return videos


def _video_error(index: int, url: str, error: Exception) -> VideoError:
    if isinstance(error, VideoError):
        return VideoError(index, error.reason, error.message)
    told = unreadable(index, error, "decode" if url[:5].lower() == "data:" else "fetch")
    return VideoError(index, told.reason, told.message)


def _parts(messages: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        if _has_parts(message):
            yield from (part for part in message["content"] if isinstance(part, Mapping))


def _has_parts(message: Any) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    return isinstance(content, Sequence) and not isinstance(content, str)


def _is_video(part: Mapping[str, Any]) -> bool:
    return "video_url" in part and part.get("type") in (None, "video_url")
