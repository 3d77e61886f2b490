"""Means and paired differences with 95 % intervals, by bootstrap over groups of questions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

RESAMPLES = 2000
_CHUNK = 4_000_000


class Estimate(BaseModel):
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def mean(values: Mapping[str, float], groups: Mapping[str, str] | None = None, *, seed: int = 0) -> Estimate:
    """The mean of some questions' scores.

    Args:
        values: score by question.
        groups: group by question; those of a group (questions about the same picture) are drawn together. A question
            that is missing is a group of its own.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no questions to average")
    names = list(values)
    codes = _codes([f"group {groups[name]}" if groups and name in groups else name for name in names])
    sums = np.bincount(codes, [values[name] for name in names])
    counts = np.bincount(codes).astype(np.float64)
    drawn = _resampled(sums, counts, seed)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value=float(sums.sum() / counts.sum()), low=float(low), high=float(high))


def paired_difference(
    ours: Mapping[str, float], theirs: Mapping[str, float], groups: Mapping[str, str] | None = None, *, seed: int = 0
) -> Estimate:
    """``ours`` minus ``theirs`` over the questions that both answered, question by question.

    Raises:
        ValueError: they have no question in common.
    """
    return mean({name: ours[name] - theirs[name] for name in ours if name in theirs}, groups, seed=seed)


def _codes(names: Sequence[str]) -> NDArray[np.intp]:
    return np.unique(np.array(names), return_inverse=True)[1]


def _resampled(sums: NDArray[Any], counts: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Means of `RESAMPLES` draws of as many groups as there are, with replacement."""
    rng = np.random.default_rng(seed)
    groups = len(sums)
    means: list[NDArray[np.float64]] = []
    rows = max(1, min(RESAMPLES, _CHUNK // groups))
    for start in range(0, RESAMPLES, rows):
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(rows, RESAMPLES - start))
        means.append((weights @ sums) / (weights @ counts))
    return np.concatenate(means)
