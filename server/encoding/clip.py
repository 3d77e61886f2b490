"""A video file to the frames that are encoded: read once from its start, a frame's pixels kept only as the encoder
takes them, so that neither a header that lies nor a large picture size can take the memory."""

import io
import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from vllm.exceptions import GracefulHTTPError
from vllm.multimodal.video_decoders.base import check_frame_pixel_limit
from vllm.multimodal.video_decoders.opencv import OpenCVVideoBackendMixin

from server.errors import VideoError

FORMATS = "mp4, webm or gif"
_MAX_SOURCE_FPS = 240
"""More frames a second than this are not read: the bound on a file's seconds then bounds its frames too."""

_MAX_PIXELS_PER_SECOND = 3840 * 2160 * 60
"""4K at 60 frames a second: times the longest video's seconds, the pixels of all of a file's frames together. Each of
them is decoded, sampled or not, and a small file can hold thousands of huge ones."""

_BROWSERS_GIF_STEP = 0.1
"""Seconds for which browsers show a GIF frame that gives no time, or one of 10 ms or less."""

_JITTER = 0.002
"""Seconds by which a frame may come before it is due: containers round times to milliseconds."""

_OPENCVS_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_FORMATS_ONLY = "format_whitelist;mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
"""FFmpeg guesses a format from a file's content, and some of its formats name further files or addresses."""

Preprocess = Callable[[Image.Image], NDArray[np.uint8]]


class Sampling(NamedTuple):
    """Which frames of a video are looked at: ``fps`` of each second, and at most ``max_frames``."""

    fps: float
    max_frames: int


class Clip(NamedTuple):
    """The sampled frames of a video.

    Attributes:
        frames: ``(frames, 3, height, width)`` uint8, as the encoder takes them.
        times: seconds from the video's first frame, one per frame.
        seconds: length of the video.
    """

    frames: NDArray[np.uint8]
    times: tuple[float, ...]
    seconds: float


class _Frame(NamedTuple):
    time: float
    until: float
    read: Callable[[], Image.Image]


class _Source(NamedTuple):
    """Frames in order, the pixels of each, and the length in seconds that the file's header gives, or None."""

    frames: Iterator[_Frame]
    pixels: int
    seconds: float | None


def decode(
    data: bytes,
    sampling: Sampling,
    max_seconds: float,
    preprocess: Preprocess,
    stopped: Callable[[], bool] = lambda: False,
) -> Clip:
    """Sample a video. Takes as long as decoding it does: for a thread.

    Frames are taken from the first on, 1 / fps apart, or farther where more than ``max_frames`` would be taken, so that
    they are spread over the whole video; one that is shown for longer is taken once. Where the file does not say how
    long it is, every second frame is given up each time there are too many.

    Args:
        data: the file.
        sampling: which frames to take.
        max_seconds: longest video that is taken.
        preprocess: makes of a frame what the encoder takes.
        stopped: asked before each frame, whether nobody waits for the video any more.

    Raises:
        VideoError: it cannot be read, is longer than ``max_seconds``, or has too many pixels.
        GracefulHTTPError: it was stopped.
    """
    try:
        source = _gif(data) if data[:6] in (b"GIF87a", b"GIF89a") else _container(data, max_seconds)
        if source.seconds is not None and source.seconds > max_seconds:
            raise _too_long(source.seconds, max_seconds)
        clip = _sample(source, sampling, max_seconds, preprocess, stopped)
    except (VideoError, GracefulHTTPError):
        raise
    except Exception as error:
        reason = "too_large" if "exceed the maximum" in str(error) else "decode"
        raise VideoError(None, reason, f"could not be read: {error}") from error
    if not len(clip.frames):
        raise VideoError(None, "decode", "has no frames that can be read")
    return clip


def _sample(
    source: _Source, sampling: Sampling, max_seconds: float, preprocess: Preprocess, stopped: Callable[[], bool]
) -> Clip:
    step = max(1 / sampling.fps, (source.seconds or 0.0) / sampling.max_frames)
    kept: list[tuple[float, NDArray[np.uint8]]] = []
    due = until = 0.0
    for count, frame in enumerate(source.frames):
        if stopped():
            raise GracefulHTTPError("the server is shutting down", HTTPStatus.SERVICE_UNAVAILABLE)
        _check_work(count, source.pixels, max_seconds)
        if frame.time > max_seconds or count > max_seconds * _MAX_SOURCE_FPS:
            raise _too_long(frame.time, max_seconds)
        until = frame.until
        if frame.time < due - _JITTER:
            continue
        kept.append((frame.time, preprocess(frame.read())))
        if len(kept) > sampling.max_frames:
            kept, step = kept[::2], 2 * step
        due = step * (math.floor((kept[-1][0] + _JITTER) / step) + 1)
    frames = np.stack([pixels for _, pixels in kept]) if kept else np.empty((0, 3, 0, 0), np.uint8)
    return Clip(frames, tuple(at for at, _ in kept), until if source.seconds is None else source.seconds)


def _check_work(frames: int, pixels: int, max_seconds: float) -> None:
    if frames * pixels > max_seconds * _MAX_PIXELS_PER_SECOND:
        raise VideoError(
            None,
            "too_large",
            f"has {frames} frames or more of {pixels / 1e6:.1f} million pixels, and this server decodes "
            f"{max_seconds * _MAX_PIXELS_PER_SECOND / 1e6:.0f} million in all; send fewer or smaller frames",
        )


def _container(data: bytes, max_seconds: float) -> _Source:
    """An mp4 or webm file; others are not even tried."""
    if data[4:8] != b"ftyp" and data[:4] != b"\x1a\x45\xdf\xa3":
        raise VideoError(None, "decode", f"its data is not a video in a format that is read; send {FORMATS}")
    with _opened(data) as capture:
        size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        check_frame_pixel_limit(*size)
        pixels, fps = math.prod(size), capture.get(cv2.CAP_PROP_FPS)
        if not 0 < fps <= _MAX_SOURCE_FPS:
            # As browsers record. The number of frames is made from the rate, and is as little true.
            return _Source(_captured(data, fps), pixels, None)
        # Before the whole look at the header, which goes to the last frame, and may decode all before it.
        _check_work(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), pixels, max_seconds)
        header = OpenCVVideoBackendMixin.get_video_metadata(capture)
    return _Source(_captured(data, header.original_fps), pixels, header.duration if header.duration > 0 else None)


@contextmanager
def _opened(data: bytes) -> Iterator[cv2.VideoCapture]:
    """A file as OpenCV reads it: from a stream that has to outlive the capture, which does not hold it."""
    operators = os.environ.get(_OPENCVS_OPTIONS, "")
    if _FORMATS_ONLY not in operators:  # There is no other way to tell OpenCV.
        os.environ[_OPENCVS_OPTIONS] = f"{operators}|{_FORMATS_ONLY}" if operators else _FORMATS_ONLY
    stream = io.BytesIO(data)
    capture = cv2.VideoCapture(stream, OpenCVVideoBackendMixin.get_cv2_video_api(), [])  # type: ignore[call-overload]
    try:
        if not capture.isOpened():
            raise VideoError(None, "decode", f"its data is not a video that can be read; send {FORMATS}")
        yield capture
    finally:
        capture.release()


def _captured(data: bytes, fps: float) -> Iterator[_Frame]:
    """A file's frames, opened anew: looking at the header moves the reader, and not always back to the first frame."""
    step = 1 / fps if 0 < fps < _MAX_SOURCE_FPS else 1 / _MAX_SOURCE_FPS
    time = first = None
    with _opened(data) as capture:

        def read() -> Image.Image:
            ok, frame = capture.retrieve()
            if not ok:
                raise ValueError("a frame is broken")
            return Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))

        while capture.grab():
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first = stamp if first is None else first
            time = stamp - first if time is None or stamp - first > time else time + step
            yield _Frame(time, time + step, read)


def _gif(data: bytes) -> _Source:
    with Image.open(io.BytesIO(data)) as picture:
        check_frame_pixel_limit(*picture.size)
        return _Source(_shown(data), math.prod(picture.size), None)


def _shown(data: bytes) -> Iterator[_Frame]:
    with Image.open(io.BytesIO(data)) as picture:
        time = 0.0
        for index in itertools.count():
            try:
                picture.seek(index)
            except EOFError:
                return
            shown = picture.info.get("duration", 0) / 1000
            until = time + (shown if shown > 0.01 else _BROWSERS_GIF_STEP)
            yield _Frame(time, until, lambda: picture.convert("RGB"))
            time = until


def _too_long(seconds: float, limit: float) -> VideoError:
    return VideoError(
        None,
        "too_large",
        f"is longer than the {limit:g} s that this server takes (seen: {seconds:.1f} s); send a shorter part of it",
    )
