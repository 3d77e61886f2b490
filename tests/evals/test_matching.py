from collections import Counter
from random import Random

import pytest

from dfmr_kernels import decide, thresholds
from evals.matching import chosen_factor, mean_tokens, mixed_factors, scale_for, shuffled_factors

TOKENS = {1: 576, 2: 144, 3: 64, 4: 36, 6: 16}


@pytest.mark.parametrize("mean", [16, 17.3, 40, 64, 100.5, 143.9, 144, 300, 576])
def test_mixed_factors_hit_the_mean_within_a_percent(mean: float) -> None:
    sizes = [Random(0).choice([1, 1, 2, 3]) for _ in range(700)]
    dealt = mixed_factors(sizes, TOKENS, mean)
    kept = sum(n * TOKENS[s] for n, s in zip(sizes, dealt, strict=True)) / sum(sizes)
    assert kept == pytest.approx(mean, rel=0.01)


def test_mixed_factors_are_neighbours() -> None:
    assert set(mixed_factors([1] * 100, TOKENS, 100)) == {2, 3}
    assert set(mixed_factors([1] * 100, TOKENS, 64)) == {3}


def test_mixed_factors_beyond_what_is_offered_take_the_nearest() -> None:
    assert set(mixed_factors([1] * 5, TOKENS, 9000)) == {1}
    assert set(mixed_factors([1] * 5, TOKENS, 3)) == {6}


def test_mixed_factors_have_the_same_mix_in_every_stretch() -> None:
    dealt = mixed_factors([1] * 400, TOKENS, (144 + 64) / 2)
    assert all(dealt[start : start + 40].count(2) == 20 for start in range(0, 400, 40))


def test_shuffled_factors_keep_the_histogram_but_not_the_places() -> None:
    chosen = [[Random(n).choice(list(TOKENS))] for n in range(300)]
    dealt = shuffled_factors(chosen, TOKENS, seed=3)
    assert Counter(dealt) == Counter(s for (s,) in chosen)
    assert dealt != [s for (s,) in chosen]
    assert dealt == shuffled_factors(chosen, TOKENS, seed=3)
    assert dealt != shuffled_factors(chosen, TOKENS, seed=4)


def test_shuffled_factors_of_requests_with_several_pictures_keep_the_mean() -> None:
    chosen = [[Random(10 * n + k).choice([1, 2, 2, 3, 6]) for k in range(1 + n % 3)] for n in range(600)]
    dealt = shuffled_factors(chosen, TOKENS, seed=0)
    wanted = sum(TOKENS[s] for factors in chosen for s in factors)
    assert sum(len(f) * TOKENS[s] for f, s in zip(chosen, dealt, strict=True)) == pytest.approx(wanted, rel=0.01)


def test_the_rule_is_the_compressors_own() -> None:
    rng = Random(1)
    taus = {2: 0.5, 3: 0.6, 4: 0.7, 6: 0.8}
    for _ in range(200):
        scores = {s: rng.random() for s in TOKENS}
        row = thresholds((24, 24), list(TOKENS), taus)
        assert chosen_factor(scores, taus, list(TOKENS)) == decide([scores[s] for s in TOKENS], row, list(TOKENS))


@pytest.mark.parametrize("target", [18, 50, 144, 200, 400])
def test_scale_compresses_as_little_as_the_target_allows(target: float) -> None:
    rng = Random(2)
    taus = {2: 0.5, 3: 0.6, 4: 0.7, 6: 0.8}
    pictures = [{s: rng.random() * (1 + s / 10) for s in TOKENS} for _ in range(200)]
    scale = scale_for(pictures, taus, TOKENS, target)
    assert mean_tokens(pictures, {s: t * scale for s, t in taus.items()}, TOKENS) <= target
    assert mean_tokens(pictures, {s: t * scale * 0.9999 for s, t in taus.items()}, TOKENS) > target


def test_scale_says_when_a_target_cannot_be_met() -> None:
    with pytest.raises(ValueError, match="more than 10 tokens"):
        scale_for([dict.fromkeys(TOKENS, 0.5)], {2: 0.5, 3: 0.6, 4: 0.7, 6: 0.8}, TOKENS, 10)
    with pytest.raises(ValueError, match="cannot be scaled"):
        scale_for([dict.fromkeys(TOKENS, 0.5)], {2: 0.0}, TOKENS, 100)


def test_few_requests_with_several_pictures_meet_the_tokens_too() -> None:
    chosen = [[1], [2], [3], [2, 6], [1, 3], [1, 6], [3, 3], [2, 2, 1], [1, 6, 6]] * 4
    dealt = shuffled_factors(chosen, TOKENS, seed=0)
    wanted = sum(TOKENS[s] for factors in chosen for s in factors)
    assert sum(len(f) * TOKENS[s] for f, s in zip(chosen, dealt, strict=True)) == pytest.approx(wanted, rel=0.01)
