"""Why a video keeps as many visual tokens as it does: every scene's score at every window, and its kept grid drawn."""

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from dfmr_kernels.video import decide, tokens_of
from server.api.overlay import drawn, png_data_url
from server.encoding.clip import Clip
from server.encoding.encoder import Picture
from server.encoding.video import EncodedScene, VideoEncoder
from server.policy import Detail, Policy
from server.savings import SceneReport, scene_report

_CELL = 336
"""Side in pixels of one frame of the drawing."""

_ACROSS = 4
_MOST = 16
"""Slices that are drawn of one scene, spread evenly over it where there are more."""


class WindowReport(BaseModel):
    """One candidate window: what the scene scored at it, and what that meant."""

    t: int = Field(description="frames that one token would stand for")
    factor: int = Field(description="rows and columns of the map that one token would stand for")
    visual_tokens: int
    score: float = Field(description="in units of the encoder's features; at t = factor = 1 there is nothing to lose")
    rule: Literal["threshold", "always", "never"] = Field(description="how the policy treats this window")
    threshold: float | None = Field(description="what the score has to stay under; null unless the rule is threshold")
    passes: bool


class ThresholdReport(BaseModel):
    """Another threshold, and what it would have led to."""

    tau: float = Field(description="just above the score of a window that then passes; one threshold for all windows")
    t: int
    factor: int
    kept_tokens: int


class SceneExplanation(SceneReport):
    """Why a scene keeps as many visual tokens as it does."""

    candidates: list[WindowReport]
    alternatives: list[ThresholdReport] = Field(description="what would change the decision, from the lowest tau on")
    overlay: str | None = Field(
        description="PNG as a data URL: a frame for each kept slice over time, with one cell per kept token; of more "
        f"than {_MOST} slices, {_MOST} spread over the scene"
    )


class VideoExplanation(BaseModel):
    """Why a video keeps as many visual tokens as it does."""

    object: Literal["dfmr.video_explanation"] = "dfmr.video_explanation"
    frames: int = Field(description="how many frames were sampled")
    seconds: float
    original_visual_tokens: int
    kept_visual_tokens: int
    detail: Detail
    cached: bool
    policy: Policy
    scenes: list[SceneExplanation]


async def explain_video(encoder: VideoEncoder, video: Picture, policy: Policy, overlay: bool) -> VideoExplanation:
    """Measure a video, decide on it, and draw what is kept.

    Raises:
        VideoError: it cannot be read or the policy cannot be met.
    """
    (encoded,) = await encoder.encode([video], policy)
    # A cached video has no pixels, and decoding the same file gives the same frames.
    clip = await encoder.clip_async(video.image, policy) if overlay else None
    rows, columns = encoder.grid
    return VideoExplanation(
        frames=encoded.frames,
        seconds=round(encoded.seconds, 3),
        original_visual_tokens=encoded.frames * rows * columns,
        kept_visual_tokens=encoded.kept_tokens,
        detail=video.detail,
        cached=encoded.cached,
        policy=policy,
        scenes=[
            SceneExplanation(
                **scene_report(scene).model_dump(),
                candidates=_windows(scene, encoder.grid),
                alternatives=_alternatives(scene, encoder.grid),
                overlay=None if clip is None else await run_in_threadpool(_overlay, clip, scene, encoder.grid),
            )
            for scene in encoded.scenes
        ],
    )


def _windows(scene: EncodedScene, grid: tuple[int, int]) -> list[WindowReport]:
    return [
        WindowReport(
            t=window.t,
            factor=window.s,
            visual_tokens=tokens_of(scene.frames, grid, window),
            score=scene.scores[window],
            rule="threshold" if math.isfinite(limit) else "always" if limit > 0 else "never",
            threshold=limit if math.isfinite(limit) else None,
            passes=limit == math.inf or scene.scores[window] < limit,
        )
        for window, limit in sorted(scene.limits.items())
    ]


def _alternatives(scene: EncodedScene, grid: tuple[int, int]) -> list[ThresholdReport]:
    """One entry for each number of tokens that some threshold would keep, other than those that are kept."""
    open_to_tau = {window: limit for window, limit in scene.limits.items() if math.isfinite(limit)}
    found: dict[int, ThresholdReport] = {}
    for tau in _just_above(scene.scores[window] for window in open_to_tau):
        limits = {**scene.limits, **dict.fromkeys(open_to_tau, tau)}
        window = decide(scene.scores, limits, scene.frames, grid)
        tokens = tokens_of(scene.frames, grid, window)
        if tokens != len(scene.features):
            found.setdefault(tokens, ThresholdReport(tau=tau, t=window.t, factor=window.s, kept_tokens=tokens))
    return list(found.values())


def _just_above(scores: Iterable[float]) -> list[float]:
    """Thresholds that let one score after another pass, rounded up to four digits; the first lets none pass."""
    return [0.0, *sorted({math.floor(score * 10_000 + 1) / 10_000 for score in scores})]


def _overlay(clip: Clip, scene: EncodedScene, grid: tuple[int, int]) -> str:
    shown = np.unique(np.linspace(0, scene.slices - 1, min(scene.slices, _MOST)).round().astype(int))
    height, width = clip.frames.shape[2:]
    cell = _CELL, round(_CELL * height / width)
    across = min(_ACROSS, len(shown))
    sheet = Image.new("RGB", (cell[0] * across, cell[1] * -(-len(shown) // across)))
    for place, index in enumerate(shown):
        first = scene.start + int(index) * scene.window.t
        last = min(first + scene.window.t, scene.stop) - 1
        picture = drawn(clip.frames[(first + last) // 2], grid, scene.window.s).resize(cell)
        sheet.paste(picture, (cell[0] * (place % across), cell[1] * (place // across)))
    return png_data_url(sheet)
