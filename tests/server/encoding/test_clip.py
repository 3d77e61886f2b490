"""Which frames of a file are looked at, and which files are refused before they cost much."""

import io
import socket
import threading

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from videos import Container, written
from vllm.exceptions import GracefulHTTPError

from server.encoding import clip as clip_module
from server.encoding.clip import Clip, Sampling, decode
from server.errors import VideoError

containers = pytest.mark.parametrize("container", ["mp4", "webm", "gif"])


def shade(level: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def ramp(frames: int, step: int = 5) -> list[Image.Image]:
    """Each frame one step brighter than the one before it, so that a frame can be told by its brightness."""
    return [shade(20 + step * i) for i in range(frames)]


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB").resize((8, 8))).transpose(2, 0, 1)


def clip(data: bytes, fps: float = 2, max_frames: int = 8, seconds: float = 60) -> Clip:
    return decode(data, Sampling(fps, max_frames), seconds, pixels)


def frame_numbers(found: Clip, step: int = 5) -> list[int]:
    """By their brightness, from the first frame's on: video codecs move brightness a little, all alike."""
    first = float(found.frames[0].mean())
    return [round((float(frame.mean()) - first) / step) for frame in found.frames]


@containers
def test_frames_are_taken_from_the_first_on_at_the_rate_that_is_asked_for(container: Container) -> None:
    found = clip(written(ramp(40), container))
    assert found.frames.shape == (8, 3, 8, 8)
    assert found.times == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5], abs=0.01)
    assert frame_numbers(found) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert found.seconds == pytest.approx(4, abs=0.11)


@containers
def test_a_rate_above_the_videos_takes_every_frame(container: Container) -> None:
    assert frame_numbers(clip(written(ramp(6), container), fps=60)) == [0, 1, 2, 3, 4, 5]


def test_more_frames_than_allowed_are_spread_over_the_whole_video() -> None:
    assert frame_numbers(clip(written(ramp(40)), fps=10, max_frames=4)) == [0, 10, 20, 30]
    assert frame_numbers(clip(written(ramp(40)), fps=10, max_frames=1)) == [0]


def test_where_the_length_is_not_known_every_second_frame_is_given_up_as_often_as_needed() -> None:
    assert frame_numbers(clip(written(ramp(40), "gif"), fps=10, max_frames=7)) == [0, 8, 16, 24, 32]
    assert frame_numbers(clip(written(ramp(40), "gif"), fps=10, max_frames=1)) == [0]


@containers
def test_one_frame_is_a_video_too(container: Container) -> None:
    found = clip(written(ramp(1), container))
    assert frame_numbers(found) == [0]


@containers
def test_a_video_that_is_too_long_is_refused(container: Container) -> None:
    with pytest.raises(VideoError, match="longer than the 2 s") as error:
        clip(written(ramp(40), container), seconds=2)
    assert error.value.reason == "too_large"


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"#EXTM3U\n#EXTINF:1,\nfile.ts", b"RIFF\0\0\0\0AVI LIST", written(ramp(3))[:40]]
)
def test_other_data_is_refused(data: bytes) -> None:
    with pytest.raises(VideoError) as error:
        clip(data)
    assert error.value.reason == "decode"


@pytest.mark.parametrize("start", [b"    ftypjp2 \n", b"\x1a\x45\xdf\xa3\n"])
def test_a_session_description_in_a_videos_clothes_makes_no_connection(start: bytes) -> None:
    """FFmpeg takes any text with such a line for an invitation to a stream, and would send there from that port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1] & ~1
    text = f"v=0\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    refusals: list[str] = []

    def read() -> None:
        with pytest.raises(VideoError) as error:
            clip(start + text.encode() + b" " * 2000)
        refusals.append(error.value.reason)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(5)
    assert refusals == ["decode"], "it waits for packets"


@containers
def test_more_pixels_than_can_be_decoded_in_reasonable_time_are_refused(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_module, "_MAX_PIXELS_PER_SECOND", 64 * 48)
    assert len(clip(written(ramp(20), container), seconds=20).frames) > 0
    with pytest.raises(VideoError, match=r"(21|40) frames or more of 0\.0 million pixels") as error:
        clip(written(ramp(40), container), seconds=20)
    assert error.value.reason == "too_large"


def test_reading_ends_when_nobody_waits_for_it() -> None:
    read: list[int] = []

    def preprocess(picture: Image.Image) -> NDArray[np.uint8]:
        read.append(1)
        return pixels(picture)

    with pytest.raises(GracefulHTTPError):
        decode(written(ramp(40), "gif"), Sampling(10, 64), 60, preprocess, lambda: len(read) == 3)
    assert len(read) == 3


def test_a_file_that_breaks_off_gives_the_frames_before() -> None:
    data = written(ramp(40), "webm")
    found = clip(data[: len(data) // 2], fps=10, max_frames=64)
    assert 0 < len(found.frames) < 40
    assert frame_numbers(found) == list(range(len(found.frames)))


def test_a_truncated_gif_is_refused() -> None:
    data = written([Image.effect_noise((64, 48), 90).convert("P") for _ in range(5)], "gif")
    with pytest.raises(VideoError, match="could not be read"):
        clip(data[: len(data) // 2], fps=10)


def test_a_picture_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    for container in ("mp4", "gif"):
        with pytest.raises(VideoError, match="64x48") as error:
            clip(written(ramp(2), container))  # type: ignore[arg-type]
        assert error.value.reason == "too_large"


def test_gif_frames_without_a_time_are_shown_as_browsers_show_them() -> None:
    buffer = io.BytesIO()
    frames = ramp(11)
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=0)
    assert clip(buffer.getvalue(), fps=2).times == pytest.approx([0, 0.5, 1.0])
