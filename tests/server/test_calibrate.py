import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.calibrate import (
    FAMILIES,
    Family,
    Measured,
    Served,
    among,
    apply,
    bins,
    by_quantile,
    calibrate,
    find_pictures,
    one_for_all,
    profile,
)
from server.histogram import histogram
from server.policy import load_settings
from server.profiles.checkpoint import PROFILE_FILE
from server.profiles.drift import stability_index
from server.profiles.format import Fingerprint, read_profile

FACTORS, TOKENS = (1, 2, 3, 4), (576, 144, 64, 36)
SERVED = Served(Fingerprint(config="c", features=(1.0, 2.0)), "std", "mean")
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def measured(scores: Any) -> Measured:
    return Measured(FACTORS, TOKENS, np.array([[0.0, *row] for row in scores]))


def many(count: int = 400) -> Measured:
    """Scores that grow with the factor, as those of pictures do."""
    rng = np.random.default_rng(0)
    scores = rng.gamma(4, 0.2, (count, 1)) * (1 + np.array([0, 0.2, 0.35]) * rng.random((count, 1)))
    return measured(scores)


@each_family
def test_the_thresholds_split_simple_pictures_from_rich_ones(family: Family) -> None:
    pictures = measured([[0.1, 0.15, 0.2], [0.9, 1.0, 1.1]])
    found = calibrate(pictures, (576 + 36) / 2, family)
    assert found.histogram == {1: 1, 2: 0, 3: 0, 4: 1}
    assert 0.2 < found.tau[4] <= 1.1


def test_a_target_below_the_largest_factor_is_refused_with_its_token_count() -> None:
    with pytest.raises(ValueError, match="keeps 36"):
        calibrate(measured([[0.1, 0.2, 0.3]]), 20)


scores = st.lists(st.tuples(*[st.floats(0.01, 5)] * 3).map(sorted), min_size=1, max_size=20)


@each_family
@given(scores=scores, target=st.floats(36, 600))
def test_the_target_is_met_and_larger_thresholds_never_keep_more(
    family: Family, scores: list[list[float]], target: float
) -> None:
    pictures = measured(scores)
    found = calibrate(pictures, target, family)
    assert found.mean_tokens <= target
    assert sum(found.histogram.values()) == len(scores)
    assert apply(pictures, {s: tau * 1.5 for s, tau in found.tau.items()}).mean_tokens <= found.mean_tokens


@each_family
@pytest.mark.parametrize("target", [50, 144, 300, 500])
def test_on_many_pictures_the_target_is_nearly_reached(family: Family, target: float) -> None:
    assert calibrate(many(), target, family).mean_tokens == pytest.approx(target, rel=0.03)


def test_thresholds_stand_to_each_other_as_medians_and_roots_of_tokens() -> None:
    pictures = many(1000)
    tau = calibrate(pictures, 100).tau
    usual = {s: np.median(row) * n**0.5 for s, n, row in zip(FACTORS, TOKENS, pictures.scores.T, strict=True)}
    assert [tau[s] / usual[s] for s in tau] == pytest.approx([tau[2] / usual[2]] * 3, rel=1e-4)


def test_few_pictures_take_every_token_so_that_the_others_need_not_be_pooled_most() -> None:
    by_median, single = (calibrate(many(1000), 100, family).histogram for family in (by_quantile, one_for_all))
    assert by_median[1] < 0.7 * single[1]
    assert by_median[4] < single[4]


def test_the_ends_are_no_pooling_and_all_that_there_is() -> None:
    for family in (by_quantile, one_for_all):
        assert apply(many(), family(many(), 0)).mean_tokens == 576
        assert apply(many(), family(many(), 1)).mean_tokens == 36


@given(st.lists(st.floats(0, 5), min_size=1, max_size=300))
def test_bins_hold_every_picture_once_and_show_no_drift_against_themselves(values: list[float]) -> None:
    row = np.array(values)
    edges, shares = bins(row)
    counts = np.bincount(np.searchsorted(edges, row, side="right"), minlength=len(shares))
    assert list(edges) == sorted(set(edges))
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert stability_index(shares, counts.tolist()) < 0.01


def test_what_is_written_is_a_checkpoints_profile_and_is_read_as_one(tmp_path: Path) -> None:
    pictures = many()
    found = calibrate(pictures, 144)
    (tmp_path / PROFILE_FILE).write_text(json.dumps(profile(pictures, SERVED, found, 144)))
    settings, read = load_settings({}, str(tmp_path))
    assert read is not None
    assert (settings.policy.tau, settings.policy.factors) == (found.tau, FACTORS)
    calibration = read_profile(tmp_path / PROFILE_FILE).calibration
    assert calibration is not None
    assert (calibration.pictures, calibration.factor, calibration.encoder) == (400, 2, SERVED.fingerprint)
    assert calibration.mean_tokens == pytest.approx(found.mean_tokens, abs=0.01)


def test_one_threshold_is_written_as_one_number() -> None:
    found = calibrate(many(), 144, one_for_all)
    assert profile(many(), SERVED, found, 144)["policy"]["tau"] == found.tau[2]


def test_only_the_factors_that_are_asked_for_are_chosen_from() -> None:
    assert among(many(), [2, 4]).factors == (1, 2, 4)
    assert among(many(), [2, 4]).scores.shape == (400, 3)
    with pytest.raises(ValueError, match="factor 6 is not measured; the server measures 1, 2, 3, 4"):
        among(many(), [2, 6])
    with pytest.raises(ValueError, match="nothing to calibrate"):
        among(many(), [1])


def test_the_histogram_has_a_row_for_every_factor() -> None:
    pictures = many()
    found = calibrate(pictures, 144)
    rows = {s: pictures.scores[:, i] for i, s in enumerate(FACTORS) if s > 1}
    heights = [
        histogram(dict(list(rows.items())[:n]), found.tau, found.histogram).height for n in range(1, len(rows) + 1)
    ]
    assert np.diff(heights).tolist() == [130, 130]
    assert len(histogram(rows, found.tau, found.histogram).getcolors(1 << 16) or ()) > 5


def test_scores_that_are_all_nought_can_be_drawn() -> None:
    assert isinstance(histogram({2: np.zeros(3)}, {2: 0.1}, {1: 0, 2: 3}), Image.Image)


def test_folders_are_searched_and_other_files_left_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.JPG", "deep/b.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_pictures([tmp_path])] == ["a.JPG", "b.png"]
