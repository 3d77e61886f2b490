"""The table in `server/metrics.py`, and what `Savings` puts into it."""

import ast
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

import server
from dfmr_kernels.video import Window
from server import metrics
from server.encoding.cache import Features
from server.encoding.jobs import EncodedPicture
from server.encoding.video import EncodedScene, EncodedVideo
from server.errors import REASONS, EncodeFailedError, EncoderOverloadedError, PictureError, RefusedError
from server.policy import Policy
from server.profiles.format import DEFAULT_PROFILE
from server.savings import Savings

COLLECTORS: dict[str, Any] = {
    name: collector for name, collector in vars(metrics).items() if isinstance(collector, Counter | Gauge | Histogram)
}
each_collector = pytest.mark.parametrize("collector", COLLECTORS.values(), ids=COLLECTORS)

EXPECTED = {
    "dfmr_visual_tokens_total": ("counter", ("model_name", "profile", "stage")),
    "dfmr_images_total": ("counter", ("model_name", "profile", "factor", "source")),
    "dfmr_videos_total": ("counter", ("model_name", "profile", "source")),
    "dfmr_video_frames_total": ("counter", ("model_name", "profile", "stage")),
    "dfmr_image_errors_total": ("counter", ("model_name", "reason")),
    "dfmr_kv_bytes_saved_total": ("counter", ("model_name", "profile")),
    "dfmr_cache_hits_total": ("counter", ("model_name",)),
    "dfmr_cache_misses_total": ("counter", ("model_name",)),
    "dfmr_cache_evictions_total": ("counter", ("model_name",)),
    "dfmr_cache_bytes": ("gauge", ("model_name",)),
    "dfmr_encode_queue_pictures": ("gauge", ("model_name",)),
    "dfmr_score_drift": ("gauge", ("model_name", "profile")),
    "dfmr_keep_drift": ("gauge", ("model_name", "profile")),
    "dfmr_pressure_level": ("gauge", ("model_name", "profile")),
    "dfmr_score": ("histogram", ("model_name",)),
    "dfmr_keep_ratio": ("histogram", ("model_name", "profile")),
    "dfmr_images_per_request": ("histogram", ("model_name",)),
    "dfmr_preprocess_seconds": ("histogram", ("model_name",)),
    "dfmr_encode_seconds": ("histogram", ("model_name",)),
    "dfmr_encode_queue_seconds": ("histogram", ("model_name",)),
    "dfmr_encode_batch_size": ("histogram", ("model_name",)),
    "dfmr_compressed_requests_total": ("counter", ("model_name", "profile")),
    "dfmr_request_log_dropped_total": ("counter", ("model_name",)),
    "dfmr_ttft_seconds": ("histogram", ("model_name", "profile")),
    "dfmr_baseline_ttft_seconds": ("histogram", ("model_name", "profile")),
    "dfmr_baseline_agreement": ("histogram", ("model_name", "profile")),
    "dfmr_baseline_answers_total": ("counter", ("model_name", "profile", "match")),
    "dfmr_baseline_runs_total": ("counter", ("model_name", "outcome")),
}

GRID = (24, 24)
CANDIDATES = (1, 2, 3, 4)
_names = (f"test-metrics-{i}" for i in count())


def full_name(collector: Any) -> str:
    (metric,) = collector.describe()
    return f"{metric.name}_total" if metric.type == "counter" else str(metric.name)


def test_the_metrics_are_those_that_are_promised() -> None:
    assert {full_name(c): (c.describe()[0].type, c._labelnames) for c in COLLECTORS.values()} == EXPECTED


@each_collector
def test_every_metric_is_ours_by_name_and_names_its_model_first(collector: Any) -> None:
    assert full_name(collector).startswith("dfmr_")
    assert ":" not in full_name(collector)
    assert collector._labelnames[0] == "model_name"


@each_collector
def test_every_metric_is_explained(collector: Any) -> None:
    assert len(collector.describe()[0].documentation) > 15


def test_gauges_add_up_over_live_api_processes_where_adding_makes_sense() -> None:
    modes = {full_name(c): c._multiprocess_mode for c in COLLECTORS.values() if isinstance(c, Gauge)}
    drift = {"dfmr_score_drift": "livemostrecent", "dfmr_keep_drift": "livemostrecent"}
    assert modes == dict.fromkeys(modes, "livesum") | drift | {"dfmr_pressure_level": "livemax"}


def encoded(factor: int, *, score: float = 0.5, cached: bool = False) -> EncodedPicture:
    rows, columns = -(-GRID[0] // factor), -(-GRID[1] // factor)
    features = Features(torch.zeros(rows * columns, 2), (rows, columns), factor)
    return EncodedPicture(features, (0.0, score, score + 0.1, score + 0.2), "key", cached)


def sample(metric: str, model_name: str, **labels: str) -> float | None:
    """A sample under the server's own policy, unless a profile is named."""
    by_policy = metric.startswith(
        ("dfmr_visual_tokens", "dfmr_images_total", "dfmr_kv_bytes", "dfmr_keep_ratio", "dfmr_video")
    )
    profile = {"profile": DEFAULT_PROFILE} if by_policy else {}
    return REGISTRY.get_sample_value(metric, {"model_name": model_name, **profile, **labels})


def test_a_report_tells_what_each_picture_kept() -> None:
    report = Savings("m", GRID, CANDIDATES).report([encoded(1, score=0.9), encoded(4, score=0.1, cached=True)])
    unchanged = {"regions": None, "squeezed_from": None}
    assert report.model_dump() == {
        "original_visual_tokens": 1152,
        "kept_visual_tokens": 576 + 36,
        "saved_visual_tokens": 540,
        "metric": "std",
        "aggregate": "mean",
        "profile": "default",
        "squeezed": None,
        "images": [
            {"grid": (24, 24), "factor": 1, "score": 0.9, "kept_tokens": 576, "cached": False, **unchanged},
            {"grid": (6, 6), "factor": 4, "score": 0.1, "kept_tokens": 36, "cached": True, **unchanged},
        ],
        "videos": [],
    }


def clip(*, cached: bool = False) -> EncodedVideo:
    """Five frames: three that stand still, kept as one at factor 2, and two that are kept as they are."""
    scenes = [(0, 3, Window(3, 2), (12, 12), 144), (3, 5, Window(1, 1), GRID, 2 * 576)]
    return EncodedVideo(
        tuple(
            EncodedScene(a, b, (a / 2, (b - 1) / 2), w, grid, {w: 0.25}, {w: 0.5}, torch.zeros(tokens, 2))
            for a, b, w, grid, tokens in scenes
        ),
        frames=5,
        seconds=2.5,
        key="key",
        cached=cached,
    )


def test_a_report_tells_what_each_scene_of_a_video_kept() -> None:
    report = Savings("m", GRID, CANDIDATES).report([encoded(1)], videos=[clip()])
    assert (report.original_visual_tokens, report.kept_visual_tokens) == (6 * 576, 576 + 144 + 1152)
    (video,) = report.model_dump()["videos"]
    still, moving = video.pop("scenes")
    assert video == {
        "frames": 5,
        "seconds": 2.5,
        "original_visual_tokens": 5 * 576,
        "kept_tokens": 144 + 1152,
        "cached": False,
    }
    assert still == {
        "frames": (0, 2),
        "seconds": (0.0, 1.0),
        "t": 3,
        "factor": 2,
        "grid": (1, 12, 12),
        "kept_tokens": 144,
        "score": 0.25,
    }
    assert (moving["frames"], moving["grid"]) == ((3, 4), (2, 24, 24))


def test_videos_are_counted_by_themselves_and_their_frames_as_visual_tokens() -> None:
    name = next(_names)
    savings = Savings(name, GRID, CANDIDATES)
    savings.count(savings.report([], videos=[clip(), clip(cached=True)]))
    assert sample("dfmr_visual_tokens_total", name, stage="original") == 10 * 576
    assert sample("dfmr_visual_tokens_total", name, stage="kept") == 2 * (144 + 1152)
    assert [sample("dfmr_videos_total", name, source=source) for source in ("encoder", "cache")] == [1, 1]
    assert [sample("dfmr_video_frames_total", name, stage=stage) for stage in ("sampled", "kept")] == [10, 6]
    assert not sample("dfmr_images_per_request_count", name)


def test_a_report_without_pictures_saves_nothing() -> None:
    report = Savings("m", GRID, CANDIDATES).report([])
    assert (report.original_visual_tokens, report.kept_visual_tokens, report.saved_visual_tokens) == (0, 0, 0)
    assert (report.metric, report.aggregate) == (None, None)


def test_a_report_names_the_policys_metric_and_aggregate() -> None:
    savings = Savings("m", GRID, CANDIDATES, Policy(metric="cosine", aggregate="p90"))
    report = savings.report([encoded(2)])
    assert (report.metric, report.aggregate) == ("cosine", "p90")


def test_the_score_is_that_of_the_smallest_factor_above_one() -> None:
    picture = encoded(1)._replace(scores=(0.0, 0.3, 0.6))
    assert Savings("m", GRID, (1, 3, 4)).report([picture]).images[0].score == 0.3


def test_a_server_that_offers_no_pooling_reports_the_only_score() -> None:
    picture = encoded(1)._replace(scores=(0.0,))
    assert Savings("m", GRID, (1,)).report([picture]).images[0].score == 0.0


@given(st.lists(st.sampled_from(CANDIDATES), max_size=8))
def test_original_less_kept_is_saved(factors: list[int]) -> None:
    report = Savings("m", GRID, CANDIDATES).report([encoded(factor) for factor in factors])
    assert report.original_visual_tokens - report.kept_visual_tokens == report.saved_visual_tokens
    assert report.original_visual_tokens == 576 * len(factors)
    assert report.kept_visual_tokens == sum(image.kept_tokens for image in report.images)
    assert all(image.grid and image.grid[0] * image.grid[1] == image.kept_tokens for image in report.images)


def test_requests_are_counted_as_they_were_reported() -> None:
    name = next(_names)
    savings = Savings(name, GRID, CANDIDATES)
    savings.kv_bytes_per_token = 1000.0
    savings.count(savings.report([encoded(1), encoded(2, score=0.2)]))
    savings.count(savings.report([encoded(2, cached=True)]))

    assert sample("dfmr_visual_tokens_total", name, stage="original") == 3 * 576
    assert sample("dfmr_visual_tokens_total", name, stage="kept") == 576 + 144 + 144
    assert sample("dfmr_kv_bytes_saved_total", name) == 2 * (576 - 144) * 1000
    assert sample("dfmr_images_total", name, factor="1", source="encoder") == 1
    assert sample("dfmr_images_total", name, factor="2", source="encoder") == 1
    assert sample("dfmr_images_total", name, factor="2", source="cache") == 1
    assert sample("dfmr_images_per_request_count", name) == 2
    assert sample("dfmr_images_per_request_sum", name) == 3
    assert sample("dfmr_score_sum", name) == pytest.approx(0.5 + 0.2 + 0.5)
    assert sample("dfmr_keep_ratio_sum", name) == pytest.approx(1 + 0.25 + 0.25)


def test_savings_are_told_apart_by_profile() -> None:
    name = next(_names)
    savings = Savings(name, GRID, CANDIDATES)
    savings.kv_bytes_per_token = 1.0
    savings.start_at_zero(["archive"])
    assert sample("dfmr_images_total", name, profile="archive", factor="2", source="encoder") == 0
    savings.count(savings.report([encoded(2)], "archive"))
    assert sample("dfmr_visual_tokens_total", name, profile="archive", stage="kept") == 144
    assert sample("dfmr_images_total", name, profile="archive", factor="2", source="encoder") == 1
    assert sample("dfmr_kv_bytes_saved_total", name, profile="archive") == 432
    assert sample("dfmr_keep_ratio_sum", name, profile="archive") == 0.25
    assert sample("dfmr_visual_tokens_total", name, stage="original") == 0


def test_a_picture_that_keeps_everything_falls_into_the_last_bucket_of_the_keep_ratio() -> None:
    name = next(_names)
    savings = Savings(name, GRID, CANDIDATES)
    savings.count(savings.report([encoded(1)]))
    assert sample("dfmr_keep_ratio_bucket", name, le="0.999") == 0
    assert sample("dfmr_keep_ratio_bucket", name, le="1.0") == 1


def test_no_bytes_are_claimed_before_the_kv_layout_is_known() -> None:
    name = next(_names)
    savings = Savings(name, GRID, CANDIDATES)
    savings.count(savings.report([encoded(2)]))
    assert sample("dfmr_kv_bytes_saved_total", name) == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PictureError(0, "decode", "could not be read"), "decode"),
        (EncoderOverloadedError(8), "overloaded"),
        (EncodeFailedError("out of memory"), "encode"),
    ],
)
def test_a_refusal_is_counted_by_its_reason_and_saves_nothing(error: RefusedError, reason: str) -> None:
    name = next(_names)
    Savings(name, GRID, CANDIDATES).refuse(error)
    assert {r: sample("dfmr_image_errors_total", name, reason=r) for r in REASONS} == {
        r: float(r == reason) for r in REASONS
    }
    assert sample("dfmr_visual_tokens_total", name, stage="original") == 0


def test_every_reason_for_a_refusal_is_known_from_the_start() -> None:
    """A series that first appears with its first event hides that event from Prometheus' `increase`."""
    raised = {
        node.args[1].value
        for path in Path(server.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("PictureError", "VideoError")
        and len(node.args) == 3
        if isinstance(node.args[1], ast.Constant)
    }
    assert {"decode", "too_long"} <= raised <= set(REASONS)


def test_every_series_of_a_model_starts_at_zero() -> None:
    name = next(_names)
    Savings(name, GRID, CANDIDATES)
    assert sample("dfmr_kv_bytes_saved_total", name) == 0
    for stage in ("original", "kept"):
        assert sample("dfmr_visual_tokens_total", name, stage=stage) == 0
    for factor in CANDIDATES:
        for source in ("encoder", "cache"):
            assert sample("dfmr_images_total", name, factor=str(factor), source=source) == 0
