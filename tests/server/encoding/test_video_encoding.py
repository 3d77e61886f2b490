"""Videos through decode, encode, cut and pool, with a small deterministic tower."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from tower import FACTORS, GRID, POISON, POLICY, Tower, encoder_of, flat, gentle, noise
from videos import almost_still, written

from dfmr_kernels.decide import grid_after
from dfmr_kernels.video import Window, pool
from server.encoding import video as video_module
from server.encoding.clip import Clip
from server.encoding.decisions import Budget
from server.encoding.encoder import Picture
from server.encoding.jobs import EncodeJob
from server.encoding.video import EncodedVideo, Video, VideoEncoder, apart, budget_beside, together, with_slices
from server.errors import EncoderOverloadedError, VideoError
from server.policy import DfmrOptions, Policy, ServerSettings

TOKENS = math.prod(GRID)


def video_encoder(tower: Tower, **settings: Any) -> VideoEncoder:
    pictures = encoder_of(tower, **settings)
    return VideoEncoder(pictures, ServerSettings(policy=POLICY, **settings), tower.sync)


def video(*scenes: Sequence[Image.Image], container: Any = "gif", detail: Any = "auto") -> Picture:
    """A video of scenes, ten frames a second."""
    return Picture(Video(written([frame for scene in scenes for frame in scene], container)), detail)


def policy(**options: Any) -> Policy:
    return POLICY.merge(DfmrOptions(video={"fps": 10, **options.pop("video", {})}, **options))


async def encoded(sent: Picture, wanted: Policy | None = None, tower: Tower | None = None) -> EncodedVideo:
    (result,) = await video_encoder(tower or Tower()).encode([sent], wanted or policy())
    return result


async def test_a_still_scene_costs_what_one_frame_costs() -> None:
    found = await encoded(video(almost_still(noise(1), 8)))
    (scene,) = found.scenes
    assert (scene.start, scene.stop, scene.window.t, found.frames) == (0, 8, 8, 8)
    assert found.kept_tokens == TOKENS
    flatter = await encoded(video(almost_still(flat(), 8)))
    assert flatter.kept_tokens == math.prod(grid_after(GRID, max(FACTORS)))


async def test_a_cut_gives_two_scenes_of_their_own() -> None:
    found = await encoded(video(almost_still(noise(1), 4), almost_still(noise(2), 6)))
    assert [(s.start, s.stop) for s in found.scenes] == [(0, 4), (4, 10)]
    assert found.kept_tokens == 2 * TOKENS
    assert found.scenes[1].seconds == pytest.approx((0.4, 0.9))


async def test_frames_that_all_differ_are_all_kept() -> None:
    frames = [noise(i) for i in range(5)]
    found = await encoded(video(frames), policy(tau=0.1, video={"scene_threshold": 2}))
    (scene,) = found.scenes
    assert scene.window == (1, 1)
    assert found.kept_tokens == 5 * TOKENS


async def test_equal_frames_pass_the_tower_once_and_a_cached_video_not_at_all() -> None:
    tower = Tower()
    videos = video_encoder(tower, max_batch=2)
    sent = video([noise(1), noise(2), noise(1), noise(3), noise(2)])
    (first,) = await videos.encode([sent], policy())
    assert (tower.encoded, first.frames) == (3, 5)
    assert max(tower.calls) <= 2
    (again,) = await videos.encode([sent], policy())
    assert tower.encoded == 3
    assert (first.cached, again.cached) == (False, True)
    assert again.scenes is first.scenes


async def test_another_policy_or_sampling_is_not_taken_from_the_cache() -> None:
    videos = video_encoder(Tower())
    sent = video(almost_still(gentle(1), 6))
    (first,) = await videos.encode([sent], policy())
    (other,) = await videos.encode([sent], policy(enabled=False))
    (fewer,) = await videos.encode([sent], policy(video={"max_frames": 3}))
    assert not other.cached
    assert (other.kept_tokens, other.frames, fewer.frames) == (6 * TOKENS, 6, 3)
    keys = [p.key for one in (first, other, fewer) for p in one.pictures()]
    assert len(set(keys)) == len(keys)


async def test_detail_is_as_for_pictures() -> None:
    scenes = almost_still(noise(1), 3), almost_still(noise(2), 3)
    low, high = await encoded(video(*scenes, detail="low")), await encoded(video(*scenes, detail="high"))
    assert [s.window for s in low.scenes] == [Window(3, max(FACTORS))] * 2
    assert high.kept_tokens == 6 * TOKENS


async def test_max_tokens_per_image_bounds_every_kept_slice() -> None:
    found = await encoded(video([noise(i) for i in range(3)]), policy(max_tokens_per_image=TOKENS // 4))
    assert all(len(picture.features.tensor) <= TOKENS // 4 for picture in found.pictures())
    with pytest.raises(VideoError, match="video 0: no allowed factor"):
        await encoded(video(almost_still(noise(1), 2)), policy(max_tokens_per_image=1))


@pytest.mark.parametrize("container", ["mp4", "webm", "gif"])
async def test_the_slices_are_the_pooled_maps_of_the_frames(container: Any) -> None:
    tower = Tower()
    videos = video_encoder(tower)
    sent = video(almost_still(gentle(3), 3), [gentle(i) for i in range(4, 9)], container=container)
    (found,) = await videos.encode([sent], policy())
    clip = videos.clip(sent.image, videos.plan(0, "auto", policy()).sampling)
    whole = (math.inf, -math.inf, -math.inf)
    maps = torch.stack([r.features.tensor for r in tower.sync([EncodeJob(f, whole) for f in clip.frames])])  # type: ignore[union-attr]
    maps = maps.view(found.frames, *GRID, -1)
    for scene in found.scenes:
        expected = pool(maps[scene.start : scene.stop], scene.window).flatten(0, 2)
        torch.testing.assert_close(scene.features, expected)
        assert len(expected) == scene.slices * math.prod(scene.grid)
    assert torch.equal(
        torch.cat([p.features.tensor for p in found.pictures()]), torch.cat([s.features for s in found.scenes])
    )


async def test_blocking_and_awaited_encoding_agree() -> None:
    sent = video(almost_still(gentle(3), 3), [gentle(i) for i in range(4, 9)])
    (one,) = await video_encoder(Tower()).encode([sent], policy())
    (other,) = video_encoder(Tower(), max_batch=3).encode_sync([sent], policy())
    assert [p.key for p in one.pictures()] == [p.key for p in other.pictures()]
    for a, b in zip(one.scenes, other.scenes, strict=True):
        assert torch.equal(a.features, b.features)
        assert a.scores == b.scores


async def test_errors_name_the_video() -> None:
    good, poisoned = video(almost_still(flat(), 2)), video(almost_still(Image.new("RGB", (50, 40), POISON), 2))
    with pytest.raises(VideoError, match=r"video 1: .*not finite"):
        await video_encoder(Tower()).encode([good, poisoned], policy())
    with pytest.raises(VideoError, match=r"video 0: .*not finite"):
        video_encoder(Tower()).encode_sync([poisoned], policy())
    with pytest.raises(VideoError, match="video 1: its data is not a video"):
        await video_encoder(Tower()).encode([good, Picture(Video(b"hello"))], policy())
    with pytest.raises(VideoError, match=r"video 0: is longer than the 0\.5 s"):
        await video_encoder(Tower(), max_video_seconds=0.5).encode([video(almost_still(flat(), 9))], policy())
    with pytest.raises(VideoError, match=r"video 0: dfmr.video.max_frames is at most 64"):
        await video_encoder(Tower()).encode([good], policy(video={"max_frames": 65}))
    with pytest.raises(VideoError, match=r"video 0: dfmr.method drop-random is for pictures"):
        await video_encoder(Tower()).encode([good], POLICY.model_copy(update={"method": "drop-random"}))


async def test_above_the_bound_videos_are_refused_and_then_taken_again() -> None:
    videos = video_encoder(Tower(), max_videos=2)
    sent = [video(almost_still(noise(i), 2)) for i in range(3)]
    results = await asyncio.gather(*(videos.encode([one], policy()) for one in sent), return_exceptions=True)
    assert sum(isinstance(result, EncoderOverloadedError) for result in results) == 1
    assert len(await videos.encode(sent, policy())) == 3


async def test_a_request_that_goes_away_leaves_its_place() -> None:
    tower = Tower()
    tower.open.clear()
    videos = video_encoder(tower, max_videos=1)
    task = asyncio.create_task(videos.encode([video(almost_still(noise(1), 2))], policy()))
    async with asyncio.timeout(30):
        while not tower.calls:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    tower.open.set()
    assert len(await videos.encode([video(almost_still(noise(2), 2))], policy())) == 1


async def test_decoding_ends_when_its_request_goes_away_and_delays_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = threading.Semaphore(0), threading.Semaphore(0)

    def endless(*arguments: Any) -> Clip:
        stopped, end = arguments[-1], time.monotonic() + 60
        began.release()
        while not stopped() and time.monotonic() < end:
            time.sleep(0.001)
        ended.release()
        raise VideoError(None, "decode", "stopped")

    monkeypatch.setattr(video_module, "decode", endless)
    tower = Tower()
    pictures = encoder_of(tower)
    videos = VideoEncoder(pictures, ServerSettings(policy=POLICY), tower.sync)
    tasks = [asyncio.create_task(videos.encode([video(almost_still(noise(i), 2))], policy())) for i in range(2)]
    try:
        for _ in tasks:
            assert await asyncio.to_thread(began.acquire, True, 10)
        async with asyncio.timeout(10):
            await pictures.encode([Picture(noise(5))], POLICY)
        tasks[0].cancel()
        assert await asyncio.to_thread(ended.acquire, True, 10)
    finally:
        videos.close()
    assert await asyncio.to_thread(ended.acquire, True, 10)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_remembered_is_as_large_as_it_says() -> None:
    found = await encoded(video([noise(1)], almost_still(flat(), 9)))
    assert [scene.window.t for scene in found.scenes] == [1, 9]
    for scene in found.scenes:
        assert scene.features.untyped_storage().nbytes() == scene.features.nbytes


async def test_a_video_becomes_as_many_pictures_in_the_prompt_as_it_has_slices() -> None:
    clip = video([noise(1), noise(2)])
    sent = [Picture(flat()), clip, Picture(noise(5))]
    stills, clips = apart(sent)
    assert (len(stills), clips) == (2, [clip])
    videos = await video_encoder(Tower()).encode(clips, policy())
    pictures = await encoder_of(Tower()).encode(stills, POLICY)
    prompt, shown = with_slices([1, 9, 2, 9, 9, 3], 9, together(sent, pictures, videos))
    assert prompt == [1, 9, 2, 9, 9, 9, 3]
    assert [p.key for p in shown] == [pictures[0].key, *(p.key for p in videos[0].pictures()), pictures[1].key]


async def test_videos_take_their_tokens_from_the_budget_of_the_pictures() -> None:
    (found,) = await video_encoder(Tower()).encode([video([noise(1), noise(2)])], policy())
    kept = found.kept_tokens
    assert budget_beside([found], Budget(kept + 9, (kept, 900)), kept + 9) == Budget(9, (0, 900 - kept))
    assert budget_beside([], Budget(None, (5,)), None) == Budget(None, (5,))
    assert budget_beside([found], Budget(kept - 5), None, 16) == Budget(16)
    with pytest.raises(VideoError, match=f"{kept - 1} are not enough for the request's videos, which keep {kept}"):
        budget_beside([found], Budget(kept - 1), kept - 1)
