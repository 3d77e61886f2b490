"""Why a picture keeps what it keeps, and what would change that, from what was measured of it."""

import math
from bisect import bisect_left
from typing import NamedTuple

from dfmr_kernels.choices import Choice
from dfmr_kernels.decide import tokens_after
from server.encoding.cache import Entry
from server.encoding.decisions import Decider
from server.policy import Detail, Policy

_DIGITS = 4


class Alternative(NamedTuple):
    """What another threshold, the same for all factors, would give.

    Attributes:
        tau: the smallest, to four digits, at which so few tokens are kept.
        tokens: that are kept then.
        factor: of the whole picture; None where blocks have factors of their own.
    """

    tau: float
    tokens: int
    factor: int | None


def alternatives(
    decider: Decider, entry: Entry, policy: Policy, detail: Detail, protected: bytes | None
) -> list[Alternative]:
    """For every number of tokens that one factor for the whole picture would keep: the smallest tau that keeps no more.

    Ascending in tau, each keeping fewer tokens than the one before; empty where the threshold decides nothing.
    """

    def choice(tau: float) -> Choice:
        one = policy.model_copy(update={"tau": tau})
        return one.choice(decider.candidates, decider.grid, detail, protected)

    def at(tau: float) -> Alternative:
        return Alternative(tau, decider.options(entry, choice(tau)).kept, decider.layout(entry, choice(tau)).factor)

    if not any(math.isfinite(limit) for limit in choice(0.0).thresholds):
        return []
    taus = sorted({0.0, *map(above, decider.scores(entry, choice(0.0)))})
    found: list[Alternative] = []
    for target in (tokens_after(decider.grid, s) for s in decider.candidates):
        # Tokens never grow with tau, so the first that is low enough is found by halves.
        first = bisect_left(taus, -target, key=lambda tau: -at(tau).tokens)
        if first < len(taus) and (not found or at(taus[first]).tokens < found[-1].tokens):
            found.append(at(taus[first]))
    return found


def above(score: float) -> float:
    """The smallest number of four digits that a score stays under."""
    if score <= 0:
        return 10.0**-_DIGITS
    unit = 10.0 ** (math.floor(math.log10(score)) + 1 - _DIGITS)
    return float(f"{(math.floor(score / unit + 1e-9) + 1) * unit:.{_DIGITS}g}")
