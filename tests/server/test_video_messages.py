"""A chat request with videos, through the real renderer and chat template, up to the engine's input: no engine runs."""

import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listener import Listener
from pictures import data_url, flat, noise
from videos import almost_still, video_part, video_url, written
from vllm.connections import global_http_connection
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.renderers.params import ChatParams

from dfmr_kernels.decide import decide, grid_after
from dfmr_kernels.reference import pyramid
from server.encoding.cache import Features
from server.encoding.jobs import EncodeJob, EncodeResult
from server.errors import PictureError, VideoError
from server.policy import DfmrOptions
from server.request import RequestState, current_request
from server.standin import write_checkpoint
from server.vllm_plugin import register
from server.vllm_plugin.renderer import DfmrRenderer
from server.vllm_plugin.videos import video_parts, with_videos

SIDE, PATCH = 112, 14
GRID = (SIDE // PATCH, SIDE // PATCH)
FULL = GRID[0] * GRID[1]


class Worker:
    """A random convolution for a tower, and the reference for the worker's pooling."""

    def __init__(self) -> None:
        self.weights = torch.randn(16, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(0)) / PATCH
        self.frames = 0
        self.candidates: tuple[int, ...] = ()

    async def __call__(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult | Exception]:
        self.frames += len(jobs)
        pixels = torch.from_numpy(np.stack([job.pixels for job in jobs])).float() / 64
        maps = torch.nn.functional.conv2d(pixels, self.weights, stride=PATCH).permute(0, 2, 3, 1)
        found = pyramid(maps, self.candidates)
        results: list[EncodeResult | Exception] = []
        for index, job in enumerate(jobs):
            scores = tuple(float(found.sigmas[s][index].mean()) for s in self.candidates)
            factor = decide(scores, job.thresholds, self.candidates)
            features = Features(found.maps[factor][index].flatten(0, 1), grid_after(GRID, factor), factor)
            windows = torch.cat([found.sigmas[s][index].flatten() for s in self.candidates])
            results.append(EncodeResult(scores, windows, (features,)))
        return results


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> DfmrRenderer:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, image_size=SIDE, dtype=torch.float32)
    register()
    arguments = AsyncEngineArgs(
        model=str(folder), max_model_len=2048, enforce_eager=True, limit_mm_per_prompt={"image": 4}, dtype="float32"
    )
    config = arguments.create_engine_config()
    from vllm.renderers.registry import renderer_from_config

    made = renderer_from_config(config)
    assert isinstance(made, DfmrRenderer)
    assert made.encoder is not None
    worker = Worker()
    worker.candidates = made.encoder.candidates
    made.encoder._batcher._run = worker
    return made


async def rendered(renderer: DfmrRenderer, *parts: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """The engine's input and the report of one message."""
    state = RequestState(DfmrOptions(**options))
    token = current_request.set(state)
    try:
        content = [*parts, {"type": "text", "text": "What happens?"}]
        messages: Any = [{"role": "user", "content": content}]
        _, prompt = await renderer.render_messages_async(messages, ChatParams())
        tokens = await renderer.tokenize_prompt_async(prompt, renderer.default_cmpl_tok_params)
        return await renderer._process_tokens_async(tokens), state.report
    finally:
        current_request.reset(token)


def picture(image: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def video(*frames: Any, detail: str | None = None) -> dict[str, Any]:
    return video_part(video_url(written([f.resize((80, 60)) for f in frames], "gif"), "gif"), detail)


async def test_a_video_stands_where_it_was_sent_with_one_placeholder_for_each_kept_token(
    renderer: DfmrRenderer,
) -> None:
    found, report = await rendered(
        renderer, picture(flat()), video(noise(1), noise(2)), picture(noise(3)), video={"fps": 10}
    )
    (sent,) = report.videos
    assert (sent.frames, sent.original_visual_tokens, len(report.images)) == (2, 2 * FULL, 2)
    lengths = [one.length for one in found["mm_placeholders"]["image"]]
    assert lengths[0] == report.images[0].kept_tokens
    assert lengths[-1] == report.images[1].kept_tokens
    assert sum(lengths[1:-1]) == sent.kept_tokens
    image_token = renderer.tokenizer.convert_tokens_to_ids("<image>")
    assert found["prompt_token_ids"].count(image_token) == report.kept_visual_tokens == sum(lengths)
    assert len(set(found["mm_hashes"]["image"])) == len(lengths) == len(found["mm_kwargs"]["image"])


async def test_a_video_counts_as_one_picture_of_the_limit(renderer: DfmrRenderer) -> None:
    frames = [noise(i) for i in range(6)]
    _, report = await rendered(renderer, *[video(*frames)] * 4, enabled=False, video={"fps": 10})
    assert sum(one.frames for one in report.videos) == 24
    with pytest.raises(VLLMValidationError, match="At most 4 image"):
        await rendered(renderer, *[video(flat())] * 5)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Has a large file, and answers all else with a 503; its address, and the paths that were asked for."""
    asked: list[str] = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path != "/large.mp4":
                self.send_error(503)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(100_000))

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setattr(global_http_connection, "reuse_client", False)  # Its connections belong to one event loop.
    listener = Listener(("127.0.0.1", 0), Busy)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}", asked
    listener.shutdown()
    listener.server_close()


async def test_too_many_videos_are_refused_before_any_is_fetched(
    renderer: DfmrRenderer, host: tuple[str, list[str]]
) -> None:
    url, asked = host
    with pytest.raises(VLLMValidationError, match="At most 4 image"):
        await rendered(renderer, picture(flat()), *[video_part(f"{url}/{i}.mp4") for i in range(4)])
    assert not asked


async def test_what_is_said_of_a_host_that_fails_is_the_failure_and_not_the_request(
    renderer: DfmrRenderer, host: tuple[str, list[str]]
) -> None:
    with pytest.raises(VideoError, match=r"video 0: .*503") as error:
        await rendered(renderer, video_part(f"{host[0]}/one.mp4"))
    assert error.value.reason == "fetch"
    assert "headers" not in str(error.value).lower()


async def test_a_file_at_a_host_that_is_too_large_is_called_so(
    renderer: DfmrRenderer, host: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer, "settings", renderer.settings.model_copy(update={"max_video_bytes": 50_000}))
    with pytest.raises(VideoError, match=r"video 0: ") as error:
        await rendered(renderer, video_part(f"{host[0]}/large.mp4"))
    assert error.value.reason == "too_large"


async def test_errors_count_pictures_and_videos_apart(renderer: DfmrRenderer) -> None:
    with pytest.raises(PictureError, match="image 1: its data is not a picture"):
        await rendered(renderer, picture(flat()), video(flat()), {"image_url": {"url": "data:image/png;base64,aGk="}})
    with pytest.raises(VideoError, match="video 1: its data is not a video"):
        await rendered(renderer, picture(flat()), video(flat()), video_part(video_url(b"hello")))
    with pytest.raises(VideoError, match=r"video 0: .*base64"):
        await rendered(renderer, video_part("data:video/mp4,hello"))
    with pytest.raises(VideoError, match=r"video 0: .*subpath|video 0: .*local"):
        await rendered(renderer, video_part("file:///etc/passwd"))


async def test_pictures_are_squeezed_to_what_videos_leave_of_a_budget(renderer: DfmrRenderer) -> None:
    still = almost_still(noise(1).resize((80, 60)), 3)
    options = {"tau": 0, "video": {"fps": 10}}
    _, alone = await rendered(renderer, video(*still), picture(noise(2)), **options)
    kept = alone.videos[0].kept_tokens
    assert alone.images[0].kept_tokens == FULL
    _, squeezed = await rendered(
        renderer, video(*still), picture(noise(4)), max_visual_tokens=kept + FULL // 4, **options
    )
    assert squeezed.videos[0].kept_tokens == kept
    assert squeezed.kept_visual_tokens <= kept + FULL // 4
    with pytest.raises(VideoError, match="are not enough for the request's videos"):
        await rendered(renderer, video(*still), max_visual_tokens=1, video={"fps": 10})


async def test_a_video_that_does_not_fit_the_context_is_refused_with_what_to_do(renderer: DfmrRenderer) -> None:
    with pytest.raises(PictureError, match=r"video\.max_frames"):
        await rendered(renderer, video(*(noise(i) for i in range(32))), enabled=False, video={"fps": 60})


def test_only_video_parts_are_replaced_and_the_message_is_left_as_it_was() -> None:
    text = {"type": "text", "text": "video_url"}
    messages: Any = [{"role": "system", "content": "x"}, {"role": "user", "content": [text, video(flat()), "y"]}]
    (part,) = video_parts(messages)
    assert part.detail == "auto"
    replaced = with_videos(messages, [part], ["file"])  # type: ignore[list-item]
    assert replaced[0] is messages[0]
    assert replaced[1]["content"] == [text, {"image_pil": "file", "detail": "auto"}, "y"]
    assert messages[1]["content"][1]["type"] == "video_url"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "video_url", "video_url": {"url": "u", "detail": "best"}}, "video 0: detail must be one of"),
        ({"type": "video_url", "video_url": {}}, "video 0: has no url"),
        ({"video_url": None}, "video 0: has no url"),
    ],
)
def test_a_part_that_says_too_little_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        video_parts([{"role": "user", "content": [part]}])


def test_a_file_is_not_read_beyond_the_bound(tmp_path: Path) -> None:
    from server.vllm_plugin.videos import VideoFileIO

    path = tmp_path / "video.mp4"
    path.write_bytes(b"x" * 100)
    io = VideoFileIO(99)
    assert io.get_max_bytes() == 99
    for load in (lambda: io.load_file(path), lambda: io.load_bytes(b"x" * 100), lambda: io.load_base64("", "A" * 140)):
        with pytest.raises(VideoError, match="this server takes 99"):
            load()
    assert VideoFileIO(100).load_file(path).data == b"x" * 100
