"""What a request saved: its client's report and its operator's metrics, from the same numbers."""

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from dfmr_kernels.decide import grid_after
from dfmr_kernels.regions import Layout
from server.encoding.jobs import EncodedPicture
from server.encoding.video import EncodedScene, EncodedVideo
from server.errors import REASONS, RefusedError
from server.metrics import (
    BASELINE_AGREEMENT,
    BASELINE_ANSWERS,
    BASELINE_TTFT,
    COMPRESSED_REQUESTS,
    IMAGE_ERRORS,
    IMAGES,
    IMAGES_PER_REQUEST,
    KEEP_RATIO,
    KV_BYTES_SAVED,
    SCORE,
    TTFT,
    VIDEO_FRAMES,
    VIDEOS,
    VISUAL_TOKENS,
)
from server.policy import Policy
from server.profiles.format import DEFAULT_PROFILE

MIXED = "mixed"
"""The ``factor`` label of pictures whose blocks have factors of their own."""


class RegionsReport(BaseModel):
    """Which pooling factor each block of a picture has."""

    block: int = Field(description="side of the blocks in cells of the encoder's map; at the edges they may be cut off")
    factors: list[list[int]] = Field(description="rows of blocks; tokens stand block after block, row-major inside")

    @classmethod
    def of(cls, layout: Layout | None, grid: tuple[int, int]) -> "RegionsReport | None":
        """The blocks of a picture of ``grid`` (rows, columns) cells; None where it has one factor throughout."""
        if layout is None:
            return None
        columns = grid_after(grid, layout.block)[1]
        rows = [list(layout.factors[i : i + columns]) for i in range(0, len(layout.factors), columns)]
        return cls(block=layout.block, factors=rows)


class SqueezedReport(BaseModel):
    """What a picture would have kept if the request's pictures had fitted their limit."""

    kept_tokens: int
    factor: int | None = Field(description="null where blocks had factors of their own")


class ImageReport(BaseModel):
    """One picture of a request."""

    grid: tuple[int, int] | None = Field(
        description="rows and columns of kept visual tokens; null where blocks have factors of their own"
    )
    factor: int | None = Field(
        description="pooling factor; 1 is uncompressed; null where blocks have factors of their own"
    )
    score: float = Field(description="intrinsic information at the smallest factor above 1")
    kept_tokens: int
    cached: bool = Field(description="whether the features came from the cache instead of the encoder")
    regions: RegionsReport | None = Field(None, description="the blocks, where they have factors of their own")
    squeezed_from: SqueezedReport | None = Field(
        None, description="what it would have kept without the request's limit; null where that changed nothing"
    )

    @classmethod
    def of(cls, picture: EncodedPicture, score: float, grid: tuple[int, int]) -> "ImageReport":
        """What became of a picture with this score, of ``grid`` (rows, columns) cells."""
        before = picture.before
        return cls(
            grid=picture.features.grid,
            factor=picture.features.factor,
            score=score,
            kept_tokens=len(picture.features.tensor),
            cached=picture.cached,
            regions=RegionsReport.of(picture.features.layout, grid),
            squeezed_from=before and SqueezedReport(kept_tokens=before.tokens, factor=before.factor),
        )


class LimitReport(BaseModel):
    """Why pictures were pooled further than their scores ask for."""

    reason: Literal["max_visual_tokens", "fit_context"]
    max_visual_tokens: int = Field(description="the most visual tokens that all pictures may keep together")


class SceneReport(BaseModel):
    """One scene of a video."""

    frames: tuple[int, int] = Field(description="first and last of its sampled frames, counted from 0")
    seconds: tuple[float, float] = Field(description="when these two are shown")
    t: int = Field(description="frames that one token stands for")
    factor: int = Field(description="rows and columns of the map that one token stands for")
    grid: tuple[int, int, int] = Field(description="slices over time, rows and columns of kept visual tokens")
    kept_tokens: int
    score: float = Field(description="intrinsic information in the chosen windows; nothing is lost at t = factor = 1")


class VideoReport(BaseModel):
    """One video of a request."""

    frames: int = Field(description="how many frames were sampled")
    seconds: float
    original_visual_tokens: int
    kept_tokens: int
    cached: bool = Field(description="whether the features came from the cache instead of the encoder")
    scenes: list[SceneReport]


class Report(BaseModel):
    """The ``dfmr`` object of a response."""

    original_visual_tokens: int
    kept_visual_tokens: int
    saved_visual_tokens: int
    metric: str | None = Field(None, description="what the scores measure inside each window; null without pictures")
    aggregate: str | None = Field(None, description="how the windows make a picture's score; null without pictures")
    profile: str = Field(DEFAULT_PROFILE, description="name of the profile in force; default where there is none")
    squeezed: LimitReport | None = Field(
        None, description="the limit for which pictures were pooled further; null if none had to be"
    )
    images: list[ImageReport]
    videos: list[VideoReport] = []


class Savings:
    """Reports and counts for one served model.

    Args:
        model_name: label of the metrics.
        grid: rows and columns of the encoder's map, all of which vLLM would have kept.
        candidates: pooling factors, in the order of the scores.
        policy: the server's, which names the metric and the aggregate.
    """

    def __init__(
        self, model_name: str, grid: tuple[int, int], candidates: Sequence[int], policy: Policy | None = None
    ) -> None:
        self._model = model_name
        self._policy = policy or Policy()
        self._grid = grid
        self._original = grid[0] * grid[1]
        self._score_index = next((i for i, s in enumerate(candidates) if s > 1), 0)
        self.kv_bytes_per_token: float | None = None
        self._candidates = tuple(candidates)
        for reason in REASONS:
            IMAGE_ERRORS.labels(self._model, reason)
        self.start_at_zero([DEFAULT_PROFILE])

    def start_at_zero(self, profiles: Iterable[str]) -> None:
        """Make every series of these profiles now: a counter that first appears with its first event hides that event
        from `increase`."""
        for profile in profiles:
            for stage in ("original", "kept"):
                VISUAL_TOKENS.labels(self._model, profile, stage)
            for factor in (*self._candidates, MIXED):
                for source in ("encoder", "cache"):
                    IMAGES.labels(self._model, profile, str(factor), source)
            for source in ("encoder", "cache"):
                VIDEOS.labels(self._model, profile, source)
            for stage in ("sampled", "kept"):
                VIDEO_FRAMES.labels(self._model, profile, stage)
            KV_BYTES_SAVED.labels(self._model, profile)
            COMPRESSED_REQUESTS.labels(self._model, profile)
            KEEP_RATIO.labels(self._model, profile)
            for pair in (TTFT, BASELINE_TTFT, BASELINE_AGREEMENT):
                pair.labels(self._model, profile)
            for match in ("exact", "different"):
                BASELINE_ANSWERS.labels(self._model, profile, match)

    def report(
        self,
        pictures: Sequence[EncodedPicture],
        profile: str = DEFAULT_PROFILE,
        videos: Sequence[EncodedVideo] = (),
    ) -> Report:
        """What a request's pictures and videos cost and saved, in visual tokens, under a configured profile."""
        images = [ImageReport.of(p, p.scores[self._score_index], self._grid) for p in pictures]
        limit = next((p.before.limit for p in pictures if p.before), None)
        clips = [self._video(video) for video in videos]
        original = self._original * len(images) + sum(clip.original_visual_tokens for clip in clips)
        kept = sum(image.kept_tokens for image in images) + sum(clip.kept_tokens for clip in clips)
        return Report(
            original_visual_tokens=original,
            kept_visual_tokens=kept,
            saved_visual_tokens=original - kept,
            metric=self._policy.metric if images or clips else None,
            aggregate=self._policy.aggregate if images or clips else None,
            profile=profile,
            squeezed=limit and LimitReport(reason=limit.option, max_visual_tokens=limit.tokens),
            images=images,
            videos=clips,
        )

    def _video(self, video: EncodedVideo) -> VideoReport:
        return VideoReport(
            frames=video.frames,
            seconds=round(video.seconds, 3),
            original_visual_tokens=self._original * video.frames,
            kept_tokens=video.kept_tokens,
            cached=video.cached,
            scenes=[scene_report(scene) for scene in video.scenes],
        )

    def count(self, report: Report) -> None:
        """Add an answered request to the metrics."""
        labels = self._model, report.profile
        VISUAL_TOKENS.labels(*labels, "original").inc(report.original_visual_tokens)
        VISUAL_TOKENS.labels(*labels, "kept").inc(report.kept_visual_tokens)
        KV_BYTES_SAVED.labels(*labels).inc(report.saved_visual_tokens * (self.kv_bytes_per_token or 0.0))
        COMPRESSED_REQUESTS.labels(*labels).inc(report.saved_visual_tokens > 0)
        if report.images:
            IMAGES_PER_REQUEST.labels(self._model).observe(len(report.images))
        for image in report.images:
            IMAGES.labels(*labels, str(image.factor or MIXED), "cache" if image.cached else "encoder").inc()
            SCORE.labels(self._model).observe(image.score)
            KEEP_RATIO.labels(*labels).observe(image.kept_tokens / self._original)
        for video in report.videos:
            VIDEOS.labels(*labels, "cache" if video.cached else "encoder").inc()
            VIDEO_FRAMES.labels(*labels, "sampled").inc(video.frames)
            VIDEO_FRAMES.labels(*labels, "kept").inc(sum(scene.grid[0] for scene in video.scenes))

    def refuse(self, error: RefusedError) -> None:
        """Count a request that was refused for its pictures, or for there being too many of them at once."""
        IMAGE_ERRORS.labels(self._model, error.reason).inc()


def scene_report(scene: EncodedScene) -> SceneReport:
    """What a scene cost, and why."""
    first, last = scene.seconds
    return SceneReport(
        frames=(scene.start, scene.stop - 1),
        seconds=(round(first, 3), round(last, 3)),
        t=scene.window.t,
        factor=scene.window.s,
        grid=(scene.slices, *scene.grid),
        kept_tokens=len(scene.features),
        score=scene.score,
    )
