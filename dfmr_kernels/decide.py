"""From scores and thresholds to a pooling factor per picture, on the host and in plain Python.

A row of thresholds carries a picture's whole policy: one float per candidate factor, +inf where the factor is always
allowed and -inf where it never is. `thresholds` builds such a row, `decide` reads it.
"""

from collections.abc import Collection, Mapping, Sequence
from math import inf, isnan

Grid = tuple[int, int]


def grid_after(grid: Grid, s: int) -> Grid:
    """Rows and columns of windows that pooling by s leaves of `grid` = (rows, columns): (ceil(H/s), ceil(W/s))."""
    height, width = grid
    return -(-height // s), -(-width // s)


def tokens_after(grid: Grid, s: int) -> int:
    """Visual tokens that pooling by s leaves of `grid` = (rows, columns)."""
    height, width = grid_after(grid, s)
    return height * width


def check_candidates(candidates: Sequence[int]) -> None:
    """Raise ValueError unless the candidates are distinct positive integers with 1 among them, in any order."""
    if any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in candidates):
        raise ValueError(f"candidate factors must be positive integers, got {list(candidates)}")
    if len(set(candidates)) != len(candidates):
        raise ValueError(f"candidate factors must be distinct, got {list(candidates)}")
    if 1 not in candidates:
        raise ValueError(f"the factor 1 (no pooling) must be a candidate, got {list(candidates)}")


def decide(scores: Sequence[float], thresholds: Sequence[float], candidates: Sequence[int]) -> int:
    """The largest candidate factor whose score lies below its threshold; 1 where none does.

    Args:
        scores: one per candidate, in the unit of the features. NaN passes no finite threshold.
        thresholds: one per candidate, same unit; +inf lets every score pass, -inf none.
        candidates: distinct pooling factors with 1 among them, in any order.

    Raises:
        ValueError: the candidates are not so, or the three differ in length.
    """
    check_candidates(candidates)
    if not len(scores) == len(thresholds) == len(candidates):
        raise ValueError(
            f"need one score and one threshold for each of {len(candidates)} candidates, "
            f"got {len(scores)} scores and {len(thresholds)} thresholds"
        )
    passing = (
        s for s, score, limit in zip(candidates, scores, thresholds, strict=True) if limit == inf or score < limit
    )
    return max(passing, default=1)


def thresholds(
    grid: Grid,
    candidates: Sequence[int],
    tau: float | Mapping[int, float],
    factors: Collection[int] | None = None,
    max_tokens: int | None = None,
) -> list[float]:
    """The row of thresholds that expresses a policy for one picture.

    Args:
        grid: (rows, columns) of the feature map before pooling.
        candidates: distinct pooling factors with 1 among them, in any order; the row follows their order.
        tau: the threshold, in the unit of the features: one for all factors, or one for each factor above 1.
        factors: the candidates that may be chosen; None for all. Without 1 among them the picture is pooled by at
            least the smallest.
        max_tokens: the most visual tokens that the picture may keep; None for no limit.

    Returns:
        One threshold per candidate: -inf for those that are not in `factors` or leave too many tokens, +inf for the
        smallest of the others, so that the decision is at least that one, and tau for the rest.

    Raises:
        ValueError: the candidates, `factors` or `tau` make no sense, or no allowed factor fits `max_tokens`.
    """
    check_candidates(candidates)
    if min(grid) < 1:
        raise ValueError(f"the grid must have at least one row and one column, got {grid}")
    allowed = set(candidates if factors is None else factors)
    if not allowed or not allowed <= set(candidates):
        raise ValueError(f"factors must be some of the candidates {list(candidates)}, got {sorted(allowed)}")

    fitting = {s for s in allowed if max_tokens is None or tokens_after(grid, s) <= max_tokens}
    if not fitting:
        fewest = tokens_after(grid, max(allowed))
        raise ValueError(
            f"no allowed factor keeps a {grid[0]}x{grid[1]} map within {max_tokens} tokens: "
            f"the fewest possible is {fewest}, at factor {max(allowed)}"
        )
    least = min(fitting)
    return [inf if s == least else _tau_of(s, tau) if s in fitting else -inf for s in candidates]


def _tau_of(s: int, tau: float | Mapping[int, float]) -> float:
    if isinstance(tau, Mapping):
        if s not in tau:
            raise ValueError(f"tau has no threshold for factor {s}, only for {sorted(tau)}")
        tau = tau[s]
    if isnan(tau):
        raise ValueError(f"the threshold for factor {s} is NaN")
    return float(tau)
