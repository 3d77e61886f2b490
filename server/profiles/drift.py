"""Whether live pictures are still like those that a profile was calibrated on."""

import logging
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence

from server.metrics import KEEP_DRIFT, SCORE_DRIFT
from server.profiles.book import Entry, ProfileBook
from server.profiles.format import Calibration, Drift

logger = logging.getLogger(f"vllm.{__name__}")
_CALM = 0.8
"""A warning is over below this part of its limit, so that a value near the limit does not warn again and again."""


def stability_index(expected: Sequence[float], counts: Sequence[int]) -> float:
    """Population stability index: sum over bins of (a - e) ln(a / e), for shares a of now and e of then.

    Both are smoothed by half a picture a bin, so that an empty bin gives a large number and not an infinite one. By
    custom 0.1 is a small shift and 0.25 a large one; without any shift it is about (bins - 1) / pictures.

    Args:
        expected: share of each bin at calibration.
        counts: pictures in each bin now; at least one in all.

    Returns:
        a number from 0, for equal shares.
    """
    total, half = sum(counts), 0.5
    index = 0.0
    for share, count in zip(expected, counts, strict=True):
        now = (count + half) / (total + half * len(counts))
        then = (share * total + half) / (total + half * len(counts))
        index += (now - then) * math.log(now / then)
    return index


class Window:
    """The latest pictures under one profile, against its calibration. Bounded; a picture costs a few dozen additions.

    Attributes:
        score_drift: population stability index of their scores, less what a calibration of so few pictures makes it by
            chance; None until there are enough.
        keep_drift: their mean tokens over the target, less 1; None until there are enough.
    """

    def __init__(self, name: str, calibration: Calibration, limits: Drift) -> None:
        self._name, self._calibration, self._limits = name, calibration, limits
        self._by_chance = (len(calibration.shares) - 1) / calibration.pictures
        self._latest: deque[tuple[int, int]] = deque()
        self._counts = [0] * len(calibration.shares)
        self._tokens = 0
        self._warned = {"scores": False, "tokens": False}
        self.score_drift: float | None = None
        self.keep_drift: float | None = None

    def add(self, score: float, tokens: int) -> None:
        """Look at one more picture: its score at the calibration's factor, and the tokens that it kept."""
        if len(self._latest) == self._limits.window:
            oldest, kept = self._latest.popleft()
            self._counts[oldest] -= 1
            self._tokens -= kept
        into = bisect_right(self._calibration.edges, score)
        self._latest.append((into, tokens))
        self._counts[into] += 1
        self._tokens += tokens
        if len(self._latest) < self._limits.least:
            return
        self.score_drift = max(0.0, stability_index(self._calibration.shares, self._counts) - self._by_chance)
        self.keep_drift = self._tokens / len(self._latest) / self._calibration.target_tokens - 1
        self._say()

    def _say(self) -> None:
        assert self.score_drift is not None
        assert self.keep_drift is not None
        if self._crossed("scores", self.score_drift, self._limits.psi):
            logger.warning(
                "dfmr: the scores of the last %d pictures under profile %s are no longer those that it was calibrated "
                "on (population stability index %.2f, limit %g); calibrate it on pictures of today",
                len(self._latest),
                self._name,
                self.score_drift,
                self._limits.psi,
            )
        if self._crossed("tokens", abs(self.keep_drift), self._limits.tokens_share):
            logger.warning(
                "dfmr: the last %d pictures under profile %s kept %.0f tokens on average; its target is %.0f",
                len(self._latest),
                self._name,
                (1 + self.keep_drift) * self._calibration.target_tokens,
                self._calibration.target_tokens,
            )

    def _crossed(self, what: str, value: float, limit: float) -> bool:
        before = self._warned[what]
        self._warned[what] = value > (limit * _CALM if before else limit)
        return self._warned[what] and not before


class DriftWatch:
    """A window for every profile that has a calibration, and the gauges that show them.

    Args:
        model_name: label of the metrics.
        measured: pooling factors in the order of the scores.
    """

    def __init__(self, model_name: str, measured: Sequence[int]) -> None:
        self._model, self._measured = model_name, tuple(measured)
        self._windows: dict[str, tuple[Entry, Window]] = {}

    def adopt(self, book: ProfileBook) -> None:
        """Watch these profiles; a window goes on where calibration and limits are as they were."""
        gone = self._windows.keys() - calibrated(book.entries).keys()
        self._windows = {name: self._window(name, entry) for name, entry in calibrated(book.entries).items()}
        for name in (*self._windows, *gone):
            self._show(name)

    def observe(self, profile: str, pictures: Sequence[tuple[Sequence[float], int]]) -> None:
        """Look at a request's pictures.

        Args:
            profile: name of the one that was in force.
            pictures: for each its scores, in the order of the measured factors, and the tokens that it kept.
        """
        if (watched := self._windows.get(profile)) is None:
            return
        entry, window = watched
        assert entry.calibration is not None
        index = self._measured.index(entry.calibration.factor)
        for scores, tokens in pictures:
            window.add(scores[index], tokens)
        self._show(profile)

    def _window(self, name: str, entry: Entry) -> tuple[Entry, Window]:
        assert entry.calibration is not None
        old = self._windows.get(name)
        if old is not None and (old[0].calibration, old[0].drift) == (entry.calibration, entry.drift):
            return entry, old[1]
        return entry, Window(name, entry.calibration, entry.drift)

    def _show(self, profile: str) -> None:
        window = self._windows[profile][1] if profile in self._windows else None
        values = (None, None) if window is None else (window.score_drift, window.keep_drift)
        for gauge, value in zip((SCORE_DRIFT, KEEP_DRIFT), values, strict=True):
            gauge.labels(self._model, profile).set(math.nan if value is None else value)


def calibrated(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Those that have a calibration."""
    return {name: entry for name, entry in entries.items() if entry.calibration is not None}
