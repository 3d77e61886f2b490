"""DFMR over time and space, against an independent oracle in float64."""

import math
from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
import video_oracle
from comparing import DTYPES, ROUNDING, SUMMING, features
from hypothesis import given, settings
from hypothesis import strategies as st

from dfmr_kernels.scores import AGGREGATES
from dfmr_kernels.video import (
    Scene,
    Step,
    Window,
    cut,
    decide,
    limits,
    measure,
    pool,
    steps_of,
    time_windows,
    tokens_of,
)

SHAPES = [(1, 4, 4, 3), (2, 5, 7, 3), (5, 27, 27, 8), (7, 3, 8, 1), (9, 1, 1, 4), (4, 6, 6, 16)]
FACTORS = (1, 2, 3, 4, 30)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_means_are_the_oracles(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scene = features(*shape, dtype=dtype)
    exact = scene.double().numpy()
    slack = SUMMING * float(np.abs(exact).max())
    for window, score in measure(scene, FACTORS).items():
        assert score == pytest.approx(video_oracle.score(exact, *window), rel=1e-5, abs=slack)
        expected = torch.from_numpy(video_oracle.means(exact, *window))
        pooled = pool(scene, window)
        assert pooled.dtype == dtype
        torch.testing.assert_close(pooled.double(), expected, rtol=ROUNDING[dtype], atol=slack)
        assert len(pooled.flatten(0, 2)) == tokens_of(shape[0], (shape[1], shape[2]), window)


def test_with_one_frame_it_is_the_pictures_dfmr() -> None:
    scene = features(1, 9, 7, 5)
    for (t, s), score in measure(scene, FACTORS).items():
        assert t == 1
        assert score == pytest.approx(oracle.score(scene[0].double().numpy(), s), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", AGGREGATES)
def test_every_aggregate_weighs_windows_of_all_frames_alike(name: str) -> None:
    scene = features(3, 6, 6, 4)
    scores = measure(scene, (2,), name)
    expected = video_oracle.per_frame(scene.double().numpy(), 2, 2).reshape(1, -1, 3)
    wanted = AGGREGATES[name](torch.from_numpy(expected))
    assert scores[Window(2, 2)] == pytest.approx(float(wanted), rel=1e-5)


def test_a_scene_that_stands_still_loses_nothing_over_time() -> None:
    scene = features(1, 6, 6, 4).expand(5, -1, -1, -1)
    scores = measure(scene, (1, 2))
    assert {scores[Window(t, 1)] for t in time_windows(5)} == {0.0}
    assert scores[Window(5, 2)] == pytest.approx(scores[Window(1, 2)], rel=1e-6)
    torch.testing.assert_close(pool(scene, Window(5, 1)), scene[:1])


def test_constant_channels_with_a_large_offset_score_zero() -> None:
    scene = torch.full((4, 5, 5, 3), 30000.1)
    assert set(measure(scene, (1, 2, 3)).values()) == {0.0}
    assert torch.equal(pool(scene, Window(3, 2)), scene[:2, :3, :3])


def test_steps_are_the_oracles_and_distances_are_scale_free() -> None:
    video = features(5, 4, 6, 7)
    exact = video.double().numpy()
    pairs = list(pairwise(exact))
    expected = [video_oracle.distance(*pair) for pair in pairs]
    assert [step.distance for step in steps_of(video)] == pytest.approx(expected, rel=1e-5)
    assert [step.distance for step in steps_of(video * 64)] == pytest.approx(expected, rel=1e-5)
    assert [step.cost for step in steps_of(video)] == pytest.approx([video_oracle.cost(*p) for p in pairs], rel=1e-5)
    assert steps_of(video[:1]) == []


def test_steps_tell_equal_unrelated_and_opposite_frames_apart() -> None:
    one, other = torch.randn(2, 40, 40, 8, generator=torch.Generator().manual_seed(1))
    equal, unrelated, back = steps_of(torch.stack([one, one, other, one]))
    assert equal == (0, 0)
    assert unrelated.distance == pytest.approx(1, abs=0.05)
    assert back == unrelated
    assert steps_of(torch.stack([one, -one]))[0].distance == pytest.approx(2, abs=1e-3)
    assert steps_of(torch.stack([one.new_full((2, 2, 1), v) for v in (1.0, 1.0, 3.0)])) == [(0, 0), (2, 1)]


def test_a_scene_ends_before_a_frame_that_differs_by_something_that_matters() -> None:
    steps = [Step(0.1, 9), Step(0.9, 3), Step(0.5, 9), Step(0.6, 1)]
    assert cut([], 0.5) == [Scene(0, 1)]
    assert cut(steps, 0.5) == [Scene(0, 2), Scene(2, 4), Scene(4, 5)]
    assert cut(steps, 0.5, 2) == [Scene(0, 2), Scene(2, 5)]
    assert cut([Step(0, 0)] * 2, 0.0) == [Scene(0, 3)]


steps = st.builds(Step, st.floats(0, 2), st.floats(0, 9))


@given(st.lists(steps, max_size=30), st.floats(0, 2), st.floats(0, 9))
def test_scenes_follow_each_other_and_hold_every_frame(found: list[Step], threshold: float, tau: float) -> None:
    scenes = cut(found, threshold, tau)
    assert [f for scene in scenes for f in range(scene.start, scene.stop)] == list(range(len(found) + 1))
    assert all(scene.frames >= 1 for scene in scenes)


@given(st.integers(1, 1000))
def test_window_lengths_start_with_one_frame_and_end_with_the_whole_scene(frames: int) -> None:
    lengths = time_windows(frames)
    assert (lengths[0], lengths[-1]) == (1, frames)
    assert list(lengths) == sorted(set(lengths))


def test_window_lengths_cut_a_scene_evenly() -> None:
    assert [time_windows(n) for n in (1, 2, 3, 5, 9)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 5), (1, 2, 3, 5, 9)]


def test_a_last_window_of_one_frame_does_not_dilute_the_score() -> None:
    scene = features(3, 4, 4, 3)
    alone = float(measure(scene[:2], (1,))[Window(2, 1)])
    assert measure(scene, (1,))[Window(2, 1)] == pytest.approx(alone * 2 / 3, rel=1e-5)


bounds = st.one_of(st.floats(0, 5), st.sampled_from([math.inf, -math.inf]))


@given(st.data(), st.integers(1, 12), st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(deadline=None)
def test_the_decision_is_the_oracles(data: st.DataObject, frames: int, grid: tuple[int, int]) -> None:
    windows = [Window(t, s) for s in (1, 2, 3) for t in time_windows(frames)]
    score = {w: data.draw(st.floats(0, 5)) for w in windows}
    limit = {w: data.draw(bounds) for w in windows}
    assert decide(score, limit, frames, grid) == video_oracle.decide(score, limit, (frames, *grid))


def test_the_decision_keeps_the_fewest_tokens_and_then_loses_the_least() -> None:
    score = {Window(1, 1): 0.0, Window(4, 1): 0.3, Window(1, 2): 0.1, Window(4, 2): 0.9}
    free = dict.fromkeys(score, 0.5)
    assert decide(score, free, 4, (4, 4)) == Window(1, 2)  # 16 tokens, as (4, 1), with a lower score
    assert decide(score, {**free, Window(4, 2): 1.0}, 4, (4, 4)) == Window(4, 2)
    assert decide(score, dict.fromkeys(score, -math.inf), 4, (4, 4)) == Window(1, 1)
    nan = dict.fromkeys(score, math.nan)
    assert decide(nan, {**free, Window(1, 2): math.inf}, 4, (4, 4)) == Window(1, 2)


def test_longer_windows_are_allowed_where_the_factor_is_and_never_for_free() -> None:
    row = (math.inf, 0.4, -math.inf)
    found = limits(row, (1, 2, 3), 3, {2: 0.4, 3: 0.1})
    assert found == {
        Window(1, 1): math.inf,
        Window(2, 1): 0.4,
        Window(3, 1): 0.4,
        Window(1, 2): 0.4,
        Window(2, 2): 0.4,
        Window(3, 2): 0.4,
        Window(1, 3): -math.inf,
        Window(2, 3): -math.inf,
        Window(3, 3): -math.inf,
    }
    assert limits((math.inf,), (1,), 2, 0.7) == {Window(1, 1): math.inf, Window(2, 1): 0.7}
    assert limits((math.inf,), (1,), 2, {}) == {Window(1, 1): math.inf, Window(2, 1): -math.inf}
