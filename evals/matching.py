"""Controls at equal cost: how factors are dealt out so that a control spends what DFMR spent. Pure functions."""

from collections.abc import Mapping, Sequence
from random import Random

Scores = Mapping[int, float]
"""A picture's score at each pooling factor."""


def mixed_factors(sizes: Sequence[int], tokens: Mapping[int, int], mean: float) -> list[int]:
    """Two neighbouring factors, dealt out so that pictures keep ``mean`` tokens on average.

    Each request takes the finer factor whenever the account so far has room for it, so any run of requests, and with
    them each kind of question if requests are ordered by kind, has the same mix.

    Args:
        sizes: pictures of each request; all of a request get the same factor.
        tokens: visual tokens of a picture at each factor on offer.
        mean: tokens per picture to hit; one that no factor reaches gets the nearest.

    Returns:
        one factor per request. The mean is missed by at most one request's share.
    """
    finer = min((s for s in tokens if tokens[s] >= mean), key=lambda s: tokens[s], default=min(tokens))
    coarser = max((s for s in tokens if tokens[s] <= mean), key=lambda s: tokens[s], default=max(tokens))
    middle = (tokens[finer] - tokens[coarser]) / 2
    dealt: list[int] = []
    account = 0.0
    for size in sizes:
        account += size * mean
        s = finer if account - size * tokens[finer] >= -middle * size else coarser
        account -= size * tokens[s]
        dealt.append(s)
    return dealt


def shuffled_factors(chosen: Sequence[Sequence[int]], tokens: Mapping[int, int], seed: int) -> list[int]:
    """DFMR's own histogram of factors, dealt out to the wrong pictures.

    Requests with one picture exchange their factors: their histogram stays the same to the last picture. A request
    with several has one factor for all of them here, so every k-th of the sorted factors of all requests with k
    pictures is dealt out, and what that misses of the tokens is made up for by changing the fewest of these.

    Args:
        chosen: what DFMR chose, per request and picture.
        tokens: visual tokens of a picture at each factor.

    Returns:
        one factor per request.
    """
    rng = Random(seed)
    dealt = [1] * len(chosen)
    groups: dict[int, list[int]] = {}
    for index, factors in enumerate(chosen):
        groups.setdefault(len(factors), []).append(index)
    for size, members in sorted(groups.items()):
        draw = sorted(s for index in members for s in chosen[index])[size // 2 :: size]
        rng.shuffle(draw)
        for index, s in zip(members, draw, strict=True):
            dealt[index] = s
    _make_up(dealt, chosen, tokens)
    return dealt


def _make_up(dealt: list[int], chosen: Sequence[Sequence[int]], tokens: Mapping[int, int]) -> None:
    """Change factors of requests with several pictures, one at a time, while that brings the tokens closer."""
    short = sum(tokens[s] for factors in chosen for s in factors)
    short -= sum(len(factors) * tokens[s] for factors, s in zip(chosen, dealt, strict=True))
    several = [index for index, factors in enumerate(chosen) if len(factors) > 1]
    while short and several:
        # One request for each size and factor stands for all that are like it.
        like = {(len(chosen[index]), dealt[index]): index for index in several}
        steps = ((n * (tokens[s] - tokens[old]), index, s) for (n, old), index in like.items() for s in tokens)
        gain, index, s = min(steps, key=lambda step: abs(short - step[0]))
        if abs(short - gain) >= abs(short):
            return
        dealt[index] = s
        short -= gain


def chosen_factor(scores: Scores, taus: Mapping[int, float], factors: Sequence[int]) -> int:
    """The method's rule: the largest factor whose score lies below its threshold; the smallest always passes."""
    least = min(factors)
    return max(s for s in factors if s == least or scores[s] < taus[s])


def mean_tokens(pictures: Sequence[Scores], taus: Mapping[int, float], tokens: Mapping[int, int]) -> float:
    """Tokens that pictures of these scores keep on average; the keys of ``tokens`` are the factors on offer."""
    return sum(tokens[chosen_factor(scores, taus, list(tokens))] for scores in pictures) / len(pictures)


def scale_for(pictures: Sequence[Scores], taus: Mapping[int, float], tokens: Mapping[int, int], target: float) -> float:
    """By how much thresholds are multiplied so that pictures keep at most ``target`` tokens on average.

    Returns:
        the smallest such multiple, that is the one that compresses least.

    Raises:
        ValueError: the thresholds cannot be scaled, or even the largest factor keeps more.
    """
    if any(tau <= 0 for tau in taus.values()):
        raise ValueError("thresholds of zero cannot be scaled to a target")
    least = min(tokens)
    steps = sorted({0.0, *(scores[s] / taus[s] for scores in pictures for s in tokens if s != least)})

    def kept(step: float) -> float:
        return mean_tokens(pictures, {s: tau * _above(step) for s, tau in taus.items()}, tokens)

    low, high = 0, len(steps) - 1
    if kept(steps[high]) > target:
        raise ValueError(f"even the largest factor keeps more than {target:g} tokens per picture")
    while low < high:
        middle = (low + high) // 2
        if kept(steps[middle]) <= target:
            high = middle
        else:
            low = middle + 1
    return _above(steps[low])


def _above(step: float) -> float:
    """Just above the multiple at which a score equals its threshold, for a score has to lie below."""
    return step * (1 + 1e-6)
