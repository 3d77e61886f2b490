"""Videos through the real server and the real client."""

import base64
import io
import math
from typing import Any

import httpx
import pytest
from openai import BadRequestError
from pictures import flat, noise, part, scene
from PIL import Image
from serving import Server
from videos import Container, almost_still, video_part, video_url, written

pytestmark = pytest.mark.engine
FULL = 576
SIZE = (160, 120)


def ask(server: Server, *parts: Any, **options: Any) -> Any:
    return server.client.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]}],  # type: ignore[list-item, misc]
        max_tokens=2,
        temperature=0,
        extra_body={"dfmr": {"video": {"fps": 10}, **options}},
    )


def video(*frames: Any, container: Container = "mp4", fps: float = 10, detail: str | None = None) -> dict[str, Any]:
    return video_part(video_url(written([f.resize(SIZE) for f in frames], container, fps), container), detail)


@pytest.mark.parametrize("container", ["mp4", "webm", "gif"])
def test_a_still_video_costs_about_one_frame_and_a_cut_gives_two_scenes(server: Server, container: Container) -> None:
    one, other = almost_still(scene(3).resize(SIZE), 6), almost_still(noise(5, SIZE), 5)
    alone = ask(server, video(*one, container=container))
    (still,) = alone.dfmr["videos"]
    (only,) = still["scenes"]
    assert (only["frames"], only["t"], still["frames"]) == ([0, 5], 6, 6)
    assert still["original_visual_tokens"] == 6 * FULL
    assert still["kept_tokens"] == math.prod(only["grid"]) <= FULL
    both = ask(server, video(*one, *other, container=container))
    assert [s["frames"] for s in both.dfmr["videos"][0]["scenes"]] == [[0, 5], [6, 10]]


def test_every_kept_token_is_a_token_of_the_prompt(server: Server) -> None:
    parts = part(flat()), video(*(noise(i, SIZE) for i in range(3))), part(noise(1)), video(*almost_still(flat(), 4))
    response = ask(server, *parts)
    report = response.dfmr
    kept = sum(item["kept_tokens"] for item in report["images"] + report["videos"])
    assert (len(report["images"]), len(report["videos"])) == (2, 2)
    assert report["kept_visual_tokens"] == kept == response.usage.prompt_tokens_details.multimodal_tokens["image"]
    assert report["original_visual_tokens"] == (2 + 3 + 4) * FULL
    text = ask(server, *(part(flat()) for _ in range(4)))
    assert response.usage.prompt_tokens - kept == text.usage.prompt_tokens - text.dfmr["kept_visual_tokens"]


def test_an_answer_does_not_depend_on_whether_the_video_was_cached(server: Server) -> None:
    sent = video(*(scene(i) for i in range(4)), *almost_still(noise(7, SIZE), 3))
    first, again = ask(server, sent), ask(server, sent)
    assert not first.dfmr["videos"][0].pop("cached")
    assert again.dfmr["videos"][0].pop("cached")
    assert first.dfmr == again.dfmr
    assert first.choices[0].message.content == again.choices[0].message.content


def test_sampling_and_detail_are_the_requests_to_choose(server: Server) -> None:
    frames = [scene(i % 3) for i in range(8)]
    fewer = ask(server, video(*frames), video={"fps": 2, "max_frames": 4}).dfmr["videos"][0]
    assert (fewer["frames"], fewer["seconds"]) == (2, 0.8)
    whole = ask(server, video(*frames), video={"fps": 10, "max_frames": 4}, enabled=False).dfmr["videos"][0]
    assert whole["kept_tokens"] == whole["original_visual_tokens"] == 4 * FULL
    low = ask(server, video(*almost_still(noise(3, SIZE), 4), detail="low")).dfmr["videos"][0]
    assert low["kept_tokens"] == 16


def test_frames_count_as_visual_tokens_and_videos_by_themselves(server: Server) -> None:
    names = {
        "dfmr_visual_tokens_total": {"stage": "original"},
        "dfmr_videos_total": {},
        "dfmr_video_frames_total": {"stage": "sampled"},
        "dfmr_images_total": {},
    }
    before = {name: server.total(name, **labels) for name, labels in names.items()}
    ask(server, video(*almost_still(noise(21, SIZE), 5)))
    grown = [server.total(name, **labels) - before[name] for name, labels in names.items()]
    assert grown == [5 * FULL, 1, 5, 0]


@pytest.mark.parametrize(
    ("sent", "options", "message"),
    [
        (video_part(video_url(b"hello")), {}, "video 0: its data is not a video"),
        (video_part("data:video/mp4;base64,####"), {}, "video 0: "),
        (video_part("data:video/mp4,text"), {}, "video 0: "),
        (video_part(""), {}, "video 0: has no url"),
        (video(flat(), detail="best"), {}, "video 0: detail must be one of"),
        (video(flat()), {"video": {"max_frames": 1000}}, "video 0: dfmr.video.max_frames is at most 64"),
        (video(flat()), {"video": {"fps": 0}}, "fps"),
        (video(*[flat()] * 61, fps=1), {}, "video 0: is longer than the 60 s"),
        (video(*(noise(i, SIZE) for i in range(16))), {"enabled": False}, "video.max_frames"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    server: Server, sent: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequestError) as error:
        ask(server, sent, **options)
    assert message in str(error.value)


def test_an_error_of_a_picture_counts_pictures_only(server: Server) -> None:
    with pytest.raises(BadRequestError, match="image 1"):
        ask(server, part(flat()), video(flat(), flat()), part("data:image/png;base64,aGVsbG8="))


def test_explain_tells_and_draws_every_scene(server: Server) -> None:
    sent = video(*almost_still(scene(3).resize(SIZE), 6), *almost_still(noise(5, SIZE), 5))
    body = {"video_url": sent["video_url"], "dfmr": {"video": {"fps": 10}}}
    reply = httpx.post(f"{server.url}/v1/dfmr/explain", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    asked = ask(server, sent).dfmr["videos"][0]
    assert (told["frames"], told["kept_visual_tokens"]) == (11, asked["kept_tokens"])
    for scene_told, scene_asked in zip(told["scenes"], asked["scenes"], strict=True):
        assert scene_asked.items() <= scene_told.items()
        passing = [c for c in scene_told["candidates"] if c["passes"]]
        assert min(c["visual_tokens"] for c in passing) == scene_told["kept_tokens"]
        with Image.open(io.BytesIO(base64.b64decode(scene_told["overlay"].partition(",")[2]))) as drawing:
            assert drawing.size == (336, 336)
        for other in scene_told["alternatives"]:
            again = ask(server, sent, tau=other["tau"], video={"fps": 10, "scene_threshold": 0.4})
            kept = {tuple(s["frames"]): s["kept_tokens"] for s in again.dfmr["videos"][0]["scenes"]}
            assert kept.get(tuple(scene_told["frames"])) in (other["kept_tokens"], None)


def test_explain_wants_a_picture_or_a_video(server: Server) -> None:
    for body in ({}, {"image_url": {"url": "x"}, "video_url": {"url": "x"}}):
        reply = httpx.post(f"{server.url}/v1/dfmr/explain", json=body, timeout=60)
        assert (reply.status_code, "either image_url or video_url" in reply.text) == (400, True)
    reply = httpx.post(f"{server.url}/v1/dfmr/explain", json={"video_url": {"url": video_url(b"x")}}, timeout=60)
    assert (reply.status_code, "video 0: its data is not a video" in reply.text) == (400, True)


def test_the_server_is_still_there_after_all_this(server: Server) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
