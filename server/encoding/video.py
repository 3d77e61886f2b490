"""Phase one for videos: sampled frames pass the tower as pictures do; scenes and their windows are decided here."""

import asyncio
import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmr_kernels.decide import grid_after
from dfmr_kernels.video import Scene, Window, cut, decide, limits, measure, pool, steps_of, tau_of
from server.encoding.cache import Features
from server.encoding.clip import Clip, Sampling, decode
from server.encoding.decisions import Budget
from server.encoding.due import one_owner
from server.encoding.encoder import Picture, PictureEncoder
from server.encoding.jobs import EncodedPicture, EncodeJob, EncodeResult
from server.encoding.tasks import all_of
from server.errors import EncoderOverloadedError, PictureError, VideoError
from server.policy import Detail, Policy, ServerSettings

_AT_ONCE = 2
"""Videos in work at once: the unpooled maps of each take its frames times a picture's features of memory."""

_ENTRY_OVERHEAD_BYTES = 4096
"""Keys, scores and Python objects of a cached video."""


@dataclass(frozen=True)
class Video:
    """A video file as its sender gave it; in a `Picture` it stands where a picture would."""

    data: bytes


class EncodedScene(NamedTuple):
    """One scene, pooled.

    Attributes:
        start, stop: its sampled frames, without ``stop``.
        seconds: when its first and its last sampled frame are shown.
        window: how many frames, and rows and columns, one token stands for.
        grid: rows and columns of windows.
        scores, limits: at every candidate window.
        features: ``(slices * rows * columns, channels)``: windows by time, then row-major.
    """

    start: int
    stop: int
    seconds: tuple[float, float]
    window: Window
    grid: tuple[int, int]
    scores: Mapping[Window, float]
    limits: Mapping[Window, float]
    features: Tensor

    @property
    def score(self) -> float:
        return self.scores[self.window]

    @property
    def frames(self) -> int:
        return self.stop - self.start

    @property
    def slices(self) -> int:
        """Windows over time: what is kept of the scene looks to the language model like as many pictures."""
        return -(-self.frames // self.window.t)


class EncodedVideo(NamedTuple):
    """A video ready for the prompt.

    Attributes:
        scenes: in order of time, holding every sampled frame.
        frames: how many frames were sampled.
        seconds: length of the video.
        key: identity of the file and the sampling.
        cached: whether the encoder was spared.
    """

    scenes: tuple[EncodedScene, ...]
    frames: int
    seconds: float
    key: str
    cached: bool

    @property
    def kept_tokens(self) -> int:
        return sum(len(scene.features) for scene in self.scenes)

    @property
    def nbytes(self) -> int:
        return _ENTRY_OVERHEAD_BYTES + sum(scene.features.nbytes for scene in self.scenes)

    def pictures(self) -> list[EncodedPicture]:
        """The kept slices as pictures, so that none is larger than a picture, whatever the video's length."""
        return [
            EncodedPicture(
                Features(part, scene.grid, scene.window.s),
                (),
                f"{self.key}-{scene.start}-{scene.stop}-{scene.window.t}-{scene.window.s}-{index}",
                self.cached,
            )
            for scene in self.scenes
            for index, part in enumerate(scene.features.split(math.prod(scene.grid)))
        ]


class Plan(NamedTuple):
    """What decides about a video beside its content; with its hash, the cache's key."""

    sampling: Sampling
    scene_threshold: float
    row: tuple[float, ...]
    tau: float | tuple[tuple[int, float], ...]
    aggregate: str

    @property
    def taus(self) -> float | dict[int, float]:
        """The thresholds as the kernels take them."""
        return dict(self.tau) if isinstance(self.tau, tuple) else self.tau


class VideoEncoder:
    """Decode, encode frame by frame, cut, pool.

    The tower's maps come back unpooled: windows over time need every frame of a scene, and frames are encoded in
    batches no larger than pictures are, among which the worker keeps nothing.

    Args:
        pictures: encodes the frames; its cache serves videos too, and its threads, but for decoding, which takes long.
        settings: the operator's bounds.
        run_sync: encodes a batch of frames, blocking; for offline use.
    """

    def __init__(
        self,
        pictures: PictureEncoder,
        settings: ServerSettings,
        run_sync: Callable[[Sequence[EncodeJob]], Sequence[EncodeResult | Exception]],
    ) -> None:
        self._pictures = pictures
        self._settings = settings
        self._run_sync = run_sync
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="dfmr-video")
        self._closed = threading.Event()
        self._taken = 0
        self._whole = tuple(math.inf if s == 1 else -math.inf for s in pictures.candidates)

    async def encode(self, videos: Sequence[Picture], policy: Policy) -> list[EncodedVideo]:
        """Encode a request's videos, one after the other.

        Raises:
            VideoError: a video or what is asked of it is wrong; names its index.
            EncoderOverloadedError: too many videos wait already.
        """
        with one_owner(len(videos) * policy.video_max_frames):
            return [await self._one(index, video, policy) for index, video in enumerate(videos)]

    async def _one(self, index: int, video: Picture, policy: Policy) -> EncodedVideo:
        plan = self.plan(index, video.detail, policy)
        in_thread = self._pictures.in_thread
        try:
            content = await in_thread(content_key, video.image, plan.sampling)
            if hit := self._lookup(content, plan):
                return hit
            if self._taken >= self._settings.max_videos:
                raise EncoderOverloadedError(self._settings.max_videos, "videos")
            self._taken += 1
            try:
                async with self._places:
                    clip = await self._decoded(video.image, plan.sampling)
                    maps = await self._maps(clip)
                    encoded = await in_thread(self._reduced, content, plan, clip, maps)
            finally:
                self._taken -= 1
        except PictureError as error:
            raise VideoError(index, error.reason, error.message) from error
        self._remember(content, plan, encoded)
        return encoded

    async def _maps(self, clip: Clip) -> Tensor:
        """Maps (frames, rows, columns, channels), at most a batch of frames waiting for the encoder at a time."""
        distinct, places = _distinct(clip.frames)
        results: list[EncodeResult] = []
        size = self._settings.max_batch
        for start in range(0, len(distinct), size):
            batch = distinct[start : start + size]
            results += await all_of(self._pictures.submit(EncodeJob(frame, self._whole)) for frame in batch)
        return self._stacked(results, places)

    def encode_sync(self, videos: Sequence[Picture], policy: Policy) -> list[EncodedVideo]:
        """`encode` without an event loop."""
        return [self._one_sync(index, video, policy) for index, video in enumerate(videos)]

    def _one_sync(self, index: int, video: Picture, policy: Policy) -> EncodedVideo:
        plan = self.plan(index, video.detail, policy)
        try:
            content = content_key(video.image, plan.sampling)
            if hit := self._lookup(content, plan):
                return hit
            clip = self.clip(video.image, plan.sampling)
            distinct, places = _distinct(clip.frames)
            results: list[EncodeResult] = []
            for start in range(0, len(distinct), self._settings.max_batch):
                batch = [EncodeJob(frame, self._whole) for frame in distinct[start : start + self._settings.max_batch]]
                for result in self._run_sync(batch):
                    if isinstance(result, Exception):
                        raise result
                    results.append(result)
            encoded = self._reduced(content, plan, clip, self._stacked(results, places))
        except PictureError as error:
            raise VideoError(index, error.reason, error.message) from error
        self._remember(content, plan, encoded)
        return encoded

    def clip(self, video: Video, sampling: Sampling, stopped: Callable[[], bool] = lambda: False) -> Clip:
        """Decode a video within the operator's bounds. Blocks."""
        return decode(video.data, sampling, self._settings.max_video_seconds, self._pictures.preprocessor, stopped)

    async def clip_async(self, video: Video, policy: Policy) -> Clip:
        """The frames that a policy looks at, to be shown."""
        async with self._places:
            return await self._decoded(video, Sampling(policy.video_fps, policy.video_max_frames))

    async def _decoded(self, video: Video, sampling: Sampling) -> Clip:
        """`clip` in a thread, which ends soon after nobody waits for it any more."""
        left = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self.clip, video, sampling, lambda: left.is_set() or self._closed.is_set()
            )
        finally:
            left.set()

    def close(self) -> None:
        """End what is being decoded."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's map."""
        return self._pictures.grid

    def plan(self, index: int, detail: Detail, policy: Policy) -> Plan:
        """What a policy means for a video.

        Raises:
            VideoError: it cannot be met, or is not for videos.
        """
        if policy.method != "dfmr":
            raise VideoError(index, "policy", f"dfmr.method {policy.method} is for pictures; videos take dfmr only")
        if policy.metric != "std":
            raise VideoError(
                index, "policy", f"this server measures pictures by {policy.metric}; videos can be measured by std only"
            )
        most = self._settings.max_video_frames
        if policy.video_max_frames > most:
            raise VideoError(index, "policy", f"dfmr.video.max_frames is at most {most} on this server")
        try:
            row = policy.thresholds(self._pictures.candidates, self._pictures.grid, detail)
        except ValueError as error:
            raise VideoError(index, "policy", str(error)) from error
        tau: float | tuple[tuple[int, float], ...]
        if detail == "high" or not policy.enabled:
            tau = -math.inf
        elif detail == "low":
            tau = math.inf
        else:
            tau = tuple(sorted(policy.tau.items())) if isinstance(policy.tau, dict) else policy.tau
        sampling = Sampling(policy.video_fps, policy.video_max_frames)
        return Plan(sampling, policy.video_scene_threshold, row, tau, policy.aggregate)

    def _stacked(self, results: Sequence[EncodeResult], places: Sequence[int]) -> Tensor:
        rows, columns = self._pictures.grid
        return torch.stack([results[place].features.tensor.view(rows, columns, -1) for place in places])

    def _reduced(self, content: bytes, plan: Plan, clip: Clip, maps: Tensor) -> EncodedVideo:
        """Scenes of a video and what is kept of each. Blocks, for about a second per 32 frames of LLaVA-1.5's size."""
        least = tau_of(1, self._pictures.candidates, plan.taus) / 2
        cuts = cut(steps_of(maps), plan.scene_threshold, least if math.isfinite(least) else 0.0)
        scenes = tuple(self._scene(plan, clip, scene, maps) for scene in cuts)
        return EncodedVideo(scenes, len(maps), clip.seconds, content.hex(), cached=False)

    def _scene(self, plan: Plan, clip: Clip, scene: Scene, maps: Tensor) -> EncodedScene:
        part = maps[scene.start : scene.stop]
        candidates, grid = self._pictures.candidates, self._pictures.grid
        allowed = limits(plan.row, candidates, scene.frames, plan.taus)
        scores = measure(part, candidates, plan.aggregate)
        window = decide(scores, allowed, scene.frames, grid)
        return EncodedScene(
            scene.start,
            scene.stop,
            (clip.times[scene.start], clip.times[scene.stop - 1]),
            window,
            grid_after(grid, window.s),
            scores,
            allowed,
            pool(part, window).flatten(0, 2).clone(),  # A view would keep the maps of all frames in the cache.
        )

    def _lookup(self, content: bytes, plan: Plan) -> EncodedVideo | None:
        found: EncodedVideo | None = self._pictures.cache.get_whole((content, plan))
        return None if found is None else found._replace(cached=True)

    def _remember(self, content: bytes, plan: Plan, encoded: EncodedVideo) -> None:
        self._pictures.cache.put_whole((content, plan), encoded)


def content_key(video: Video, sampling: Sampling) -> bytes:
    """Identity of a video's sampled frames."""
    digest = hashlib.blake2b(repr(tuple(sampling)).encode(), digest_size=16)
    digest.update(video.data)
    return digest.digest()


def apart(sent: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """A request's pictures and its videos, each in their own order."""
    return [p for p in sent if not isinstance(p.image, Video)], [p for p in sent if isinstance(p.image, Video)]


def budget_beside(videos: Sequence[EncodedVideo], budget: Budget, own: int | None, least: int = 0) -> Budget:
    """What is left of a request's budget for its pictures: videos are decided on by their scores alone.

    Args:
        own: the budget that the request or its policy asks for; a ceiling under pressure is none, it refuses nothing.
        least: what the pictures are left in any case.

    Raises:
        VideoError: the videos keep more than their own budget.
    """
    kept = sum(video.kept_tokens for video in videos)
    if own is not None and kept > own:
        raise VideoError(
            None,
            "policy",
            f"dfmr.max_visual_tokens: {own} are not enough for the request's videos, which keep {kept} and "
            "are not squeezed; ask for fewer frames (dfmr.video.max_frames), detail low, or a larger dfmr.tau",
        )
    asked = None if budget.asked is None else max(budget.asked - kept, least)
    return Budget(asked, tuple(room - kept for room in budget.rooms))


def together(
    sent: Sequence[Picture], pictures: Sequence[EncodedPicture], videos: Sequence[EncodedVideo]
) -> list[list[EncodedPicture]]:
    """What `apart` took apart, encoded: for everything that was sent, the pictures that the language model is given."""
    following, clips = iter(pictures), iter(videos)
    return [next(clips).pictures() if isinstance(p.image, Video) else [next(following)] for p in sent]


def with_slices(
    prompt: Sequence[int], image_token: int, encoded: Sequence[Sequence[EncodedPicture]]
) -> tuple[list[int], list[EncodedPicture]]:
    """A prompt with an image token for each picture in place of one for each item that was sent, and these pictures."""
    counts = iter([len(item) for item in encoded])
    repeated = [token for token in prompt for _ in range(next(counts, 1) if token == image_token else 1)]
    return repeated, [picture for item in encoded for picture in item]


def _distinct(frames: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Frames without repetitions, and for each frame the place of its like: still pictures are encoded once."""
    found: dict[bytes, int] = {}
    distinct: list[NDArray[np.uint8]] = []
    places: list[int] = []
    for frame in frames:
        key = hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
        if key not in found:
            found[key] = len(distinct)
            distinct.append(frame)
        places.append(found[key])
    return distinct, places
