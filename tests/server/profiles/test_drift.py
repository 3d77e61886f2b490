"""Live scores and tokens against those of the calibration."""

import logging
import math
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from test_profiles_format import CALIBRATION

from server.policy import Policy
from server.profiles.book import Entry, ProfileBook
from server.profiles.drift import DriftWatch, Window, stability_index
from server.profiles.format import Calibration, Drift

SHARES = (0.1,) * 10
_names = (f"test-drift-{i}" for i in count())


def calibration(**changes: object) -> Calibration:
    edges = tuple(i / 10 for i in range(1, 10))
    return Calibration.model_validate({**CALIBRATION, "pictures": 1000, "edges": edges, "shares": SHARES, **changes})


@given(st.lists(st.integers(0, 500), min_size=10, max_size=10).filter(any))
def test_the_index_is_that_of_the_formula(counts: list[int]) -> None:
    now = (np.array(counts) + 0.5) / (sum(counts) + 5)
    then = (0.1 * sum(counts) + 0.5) / (sum(counts) + 5)
    expected = float(((now - then) * np.log(now / then)).sum())
    assert stability_index(SHARES, counts) == pytest.approx(expected, abs=1e-12)
    assert stability_index(SHARES, counts) >= 0


def test_the_index_is_nothing_for_equal_shares_and_large_for_another_kind_of_picture() -> None:
    assert stability_index(SHARES, [20] * 10) == 0
    assert stability_index(SHARES, [0] * 9 + [200]) > 2


def test_pictures_like_those_of_the_calibration_do_not_drift() -> None:
    rng = np.random.default_rng(0)
    window = Window("w", calibration(), Drift(window=1000, least=200))
    for score in rng.random(3000):
        window.add(float(score), 144)
    assert window.score_drift is not None
    assert window.score_drift < 0.05
    assert window.keep_drift == 0


@pytest.mark.parametrize("pictures", [30, 50, 100])
def test_a_calibration_of_few_pictures_does_not_look_like_a_drift_for_ever(pictures: int) -> None:
    rng = np.random.default_rng(0)
    drifts = []
    for _ in range(20):
        edges = tuple(np.quantile(rng.random(pictures), np.arange(1, 10) / 10).tolist())
        window = Window("w", calibration(pictures=pictures, edges=edges), Drift())
        for score in rng.random(2000):
            window.add(float(score), 144)
        drifts.append(window.score_drift or 0)
    assert np.median(drifts) < 0.1
    assert np.mean(np.array(drifts) > 0.25) <= 0.1


def test_nothing_is_said_of_few_pictures() -> None:
    window = Window("w", calibration(), Drift(window=100, least=50))
    for _ in range(49):
        window.add(5.0, 576)
    assert (window.score_drift, window.keep_drift) == (None, None)
    window.add(5.0, 576)
    assert window.score_drift is not None
    assert window.keep_drift == pytest.approx(3)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 576)), min_size=60, max_size=200))
def test_only_the_latest_pictures_count(pictures: list[tuple[float, int]]) -> None:
    limits = Drift(window=50, least=20)
    whole, fresh = Window("w", calibration(), limits), Window("w", calibration(), limits)
    for score, tokens in pictures:
        whole.add(score, tokens)
    for score, tokens in pictures[-50:]:
        fresh.add(score, tokens)
    assert (whole.score_drift, whole.keep_drift) == (fresh.score_drift, fresh.keep_drift)


def test_a_shift_is_warned_of_once_and_again_only_after_it_was_over(caplog: pytest.LogCaptureFixture) -> None:
    window = Window("gauges", calibration(), Drift(window=50, least=20, tokens_share=1e9))
    rng = np.random.default_rng(0)
    caplog.set_level(logging.WARNING, logger="vllm.server.profiles.drift")
    logging.getLogger("vllm").propagate = True
    for scores in ([9.0] * 200, (rng.permutation(50) / 50).tolist() * 4, [9.0] * 200):
        for score in scores:
            window.add(score, 144)
    warned = [r.getMessage() for r in caplog.records]
    assert len(warned) == 2
    assert "profile gauges are no longer those that it was calibrated on" in warned[0]


def test_tokens_that_leave_the_target_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("vllm").propagate = True
    window = Window("gauges", calibration(target_tokens=100), Drift(window=50, least=20, psi=1e9))
    for _ in range(50):
        window.add(0.5, 119)
    assert not caplog.records
    for _ in range(50):
        window.add(0.5, 130)
    (record,) = caplog.records
    assert "its target is 100" in record.getMessage()


class TestWatch:
    ENTRY = Entry(Policy(), calibration=calibration(), drift=Drift(window=50, least=20))

    def gauge(self, name: str, model: str, profile: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"model_name": model, "profile": profile})

    def test_a_profile_with_a_calibration_has_gauges_that_say_nothing_yet(self) -> None:
        model = next(_names)
        watch = DriftWatch(model, (1, 2))
        watch.adopt(ProfileBook({"default": Entry(Policy()), "gauges": self.ENTRY}))
        assert self.gauge("dfmr_score_drift", model, "default") is None
        assert math.isnan(self.gauge("dfmr_score_drift", model, "gauges") or 0)
        watch.observe("default", [((0.0, 0.5), 144)])
        watch.observe("gauges", [((0.0, 0.5), 288)] * 30)
        assert (self.gauge("dfmr_score_drift", model, "gauges") or 0) > 0.25
        assert self.gauge("dfmr_keep_drift", model, "gauges") == pytest.approx(1)

    def test_the_score_is_that_of_the_calibrations_factor(self) -> None:
        model = next(_names)
        watch = DriftWatch(model, (1, 2, 4))
        book = ProfileBook({"gauges": self.ENTRY._replace(calibration=calibration(factor=4))})
        watch.adopt(book)
        for i in range(20):
            watch.observe("gauges", [((0.0, 9.0, i / 20), 144)])
        assert (self.gauge("dfmr_score_drift", model, "gauges") or 0) < 0.01

    def test_a_reload_forgets_nothing_where_the_calibration_stays(self) -> None:
        model = next(_names)
        watch = DriftWatch(model, (1, 2))
        watch.adopt(ProfileBook({"gauges": self.ENTRY}))
        watch.observe("gauges", [((0.0, 0.5), 288)] * 30)
        watch.adopt(ProfileBook({"gauges": self.ENTRY._replace(note="renamed")}))
        assert self.gauge("dfmr_keep_drift", model, "gauges") == pytest.approx(1)
        changed = self.ENTRY._replace(calibration=calibration(target_tokens=100))
        watch.adopt(ProfileBook({"gauges": changed}))
        assert math.isnan(self.gauge("dfmr_keep_drift", model, "gauges") or 0)

    def test_the_gauges_of_a_profile_that_is_gone_say_nothing(self) -> None:
        model = next(_names)
        watch = DriftWatch(model, (1, 2))
        watch.adopt(ProfileBook({"gauges": self.ENTRY}))
        watch.observe("gauges", [((0.0, 0.5), 288)] * 30)
        watch.adopt(ProfileBook({"gauges": Entry(Policy()), "others": self.ENTRY}))
        assert math.isnan(self.gauge("dfmr_score_drift", model, "gauges") or 0)
        assert math.isnan(self.gauge("dfmr_keep_drift", model, "gauges") or 0)
