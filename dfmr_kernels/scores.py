"""How a picture's window map becomes its score, by name. What the map measures is the metric's business (`metrics`).

Every aggregate takes window maps (B, h, w) float32, of pictures or of blocks of windows, to scores (B,) float32 in the
same unit, each window weighing the same, cut-off ones at the edge too. To add one, write the function and enter it in
`AGGREGATES`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Aggregate = Callable[[Tensor], Tensor]


def mean(sigma: Tensor) -> Tensor:
    """The mean over windows: the paper's score (arXiv 2412.08771).

    Its blind spot: a small number on a blank page fills few windows, so the page scores as simple.
    """
    return sigma.flatten(1).mean(1)


def median(sigma: Tensor) -> Tensor:
    """The middle value over windows, the mean of the two middle ones where their number is even.

    Robust against outlier windows of either kind; blind to detail in fewer than half of the windows, even more than
    the mean is.
    """
    return torch.quantile(sigma.flatten(1), 0.5, dim=1)


def top_quarter(sigma: Tensor) -> Tensor:
    """The mean of the largest quarter of the windows, rounded up, so at least one.

    Robust against the mean's blind spot: a blank background cannot dilute detail that fills a quarter of the windows.
    """
    windows = sigma.flatten(1)
    return windows.topk(-(-windows.shape[1] // 4), dim=1).values.mean(1)


def p90(sigma: Tensor) -> Tensor:
    """The 0.9 quantile over windows, interpolated linearly.

    Robust against the mean's blind spot, and against a few outlier windows that would move the mean; blind to detail
    in fewer than a tenth of the windows.
    """
    return torch.quantile(sigma.flatten(1), 0.9, dim=1)


def largest(sigma: Tensor) -> Tensor:
    """The largest window: sees detail however small it is, and any outlier."""
    return sigma.flatten(1).amax(1)


def peak(sigma: Tensor) -> Tensor:
    """How far the largest window stands above the mean one; 0 for a single window.

    The mean is the picture's own noise floor, so neither of the mean's blind spots is left: a small number on a blank
    page stands far above it, and noise or texture that is the same everywhere does not. Blind to detail that fills the
    picture evenly.
    """
    return largest(sigma) - mean(sigma)


AGGREGATES: dict[str, Aggregate] = {
    "mean": mean,
    "median": median,
    "top-quarter": top_quarter,
    "p90": p90,
    "max": largest,
    "peak": peak,
}

RELATIVE: dict[Aggregate, tuple[Aggregate, Aggregate]] = {peak: (largest, mean)}
"""Aggregates that compare windows with a level of their own picture, in two parts: what is taken over windows, less the
level, and the level. The score of a part of a picture takes the level of the whole."""


def aggregate_by_name(name: str) -> Aggregate:
    """The aggregate called `name`. Raises ValueError, naming those that exist, where there is none."""
    if name not in AGGREGATES:
        raise ValueError(f"unknown aggregate {name!r}, choose one of {', '.join(sorted(AGGREGATES))}")
    return AGGREGATES[name]
