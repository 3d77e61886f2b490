"""`FeatureCache` keeps what was used last, within its bound in bytes."""

from collections import OrderedDict
from itertools import count

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.encoding.cache import _ENTRY_OVERHEAD_BYTES, FeatureCache, Features
from server.metrics import CACHE_BYTES, CACHE_EVICTIONS

_names = (f"test-cache-{i}" for i in count())


def features(nbytes: int, factor: int = 1) -> Features:
    return Features(torch.zeros(nbytes, dtype=torch.uint8)[:, None], (nbytes, 1), factor)


def evictions(model_name: str) -> float:
    (metric,) = CACHE_EVICTIONS.labels(model_name).collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_total"))


def gauge(model_name: str) -> float:
    (metric,) = CACHE_BYTES.labels(model_name).collect()
    return metric.samples[0].value


@pytest.fixture
def name() -> str:
    return next(_names)


def test_a_picture_is_found_by_its_key(name: str) -> None:
    cache = FeatureCache(1 << 20, name)
    kept = features(100, factor=2)
    cache.put(b"a", (0.0, 0.5), kept)

    entry = cache.get(b"a")
    assert entry is not None
    assert entry.scores == (0.0, 0.5)
    assert entry.features == {2: kept}
    assert cache.get(b"b") is None


def test_factors_of_one_picture_share_its_scores_and_its_overhead(name: str) -> None:
    cache = FeatureCache(1 << 20, name)
    cache.put(b"a", (0.0, 0.5), features(400, factor=1))
    cache.put(b"a", (0.0, 0.5), features(100, factor=2))

    entry = cache.get(b"a")
    assert entry is not None
    assert set(entry.features) == {1, 2}
    assert len(cache) == 1
    assert cache.nbytes == _ENTRY_OVERHEAD_BYTES + 500


def test_the_same_features_again_take_no_more_room(name: str) -> None:
    cache = FeatureCache(1 << 20, name)
    for _ in range(3):
        cache.put(b"a", (0.0,), features(100))
    assert cache.nbytes == _ENTRY_OVERHEAD_BYTES + 100


def test_the_least_recently_used_goes_first(name: str) -> None:
    cache = FeatureCache(3 * (_ENTRY_OVERHEAD_BYTES + 100), name)
    for key in (b"a", b"b", b"c"):
        cache.put(key, (0.0,), features(100))
    cache.get(b"a")
    cache.put(b"d", (0.0,), features(100))

    assert [key for key in (b"a", b"b", b"c", b"d") if cache.get(key)] == [b"a", b"c", b"d"]
    assert evictions(name) == 1


def test_a_picture_that_fills_the_bound_exactly_is_kept(name: str) -> None:
    cache = FeatureCache(_ENTRY_OVERHEAD_BYTES + 100, name)
    cache.put(b"a", (0.0,), features(100))
    assert cache.get(b"a") is not None


def test_a_picture_larger_than_the_bound_is_not_kept_and_drives_nothing_out(name: str) -> None:
    cache = FeatureCache(2 * _ENTRY_OVERHEAD_BYTES, name)
    cache.put(b"small", (0.0,), features(100))
    cache.put(b"large", (0.0,), features(2 * _ENTRY_OVERHEAD_BYTES))

    assert cache.get(b"large") is None
    assert cache.get(b"small") is not None
    assert evictions(name) == 0


def test_a_bound_of_zero_keeps_nothing(name: str) -> None:
    cache = FeatureCache(0, name)
    cache.put(b"a", (0.0,), features(1))
    assert len(cache) == cache.nbytes == 0


def test_features_without_tokens_are_bounded_too(name: str) -> None:
    cache = FeatureCache(10 * _ENTRY_OVERHEAD_BYTES, name)
    for i in range(50):
        cache.put(bytes([i]), (0.0,), features(0))
    assert len(cache) == 10


def test_the_gauge_shows_the_bytes_held(name: str) -> None:
    cache = FeatureCache(1 << 20, name)
    assert gauge(name) == 0
    cache.put(b"a", (0.0,), features(100))
    assert gauge(name) == cache.nbytes > 100


class CacheAgainstModel(RuleBasedStateMachine):
    """Any sequence of uses leaves what a plain ordered dictionary of sizes says is left."""

    bound = 5 * _ENTRY_OVERHEAD_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.name = next(_names)
        self.cache = FeatureCache(self.bound, self.name)
        self.model: OrderedDict[bytes, dict[int, int]] = OrderedDict()
        self.evictions = 0

    def size(self) -> int:
        return sum(_ENTRY_OVERHEAD_BYTES + sum(sizes.values()) for sizes in self.model.values())

    @rule(
        key=st.sampled_from([bytes([i]) for i in range(8)]),
        factor=st.sampled_from([1, 2, 3]),
        nbytes=st.integers(0, 2 * _ENTRY_OVERHEAD_BYTES),
    )
    def put(self, key: bytes, factor: int, nbytes: int) -> None:
        self.cache.put(key, (0.5,), features(nbytes, factor))
        grown = {**self.model.pop(key, {}), factor: nbytes}
        if _ENTRY_OVERHEAD_BYTES + sum(grown.values()) <= self.bound:
            self.model[key] = grown
        while self.size() > self.bound:
            self.model.popitem(last=False)
            self.evictions += 1

    @rule(key=st.sampled_from([bytes([i]) for i in range(8)]))
    def get(self, key: bytes) -> None:
        entry = self.cache.get(key)
        expected = self.model.get(key)
        assert (entry is None) == (expected is None)
        if entry is not None and expected is not None:
            assert {factor: f.nbytes for factor, f in entry.features.items()} == expected
            self.model.move_to_end(key)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()

    @invariant()
    def bytes_are_the_sum_of_the_entries_and_within_the_bound(self) -> None:
        assert self.cache.nbytes == self.size() <= self.bound
        assert len(self.cache) == len(self.model)

    @invariant()
    def metrics_tell_the_same(self) -> None:
        assert gauge(self.name) == self.cache.nbytes
        assert evictions(self.name) == self.evictions


TestCacheAgainstModel = CacheAgainstModel.TestCase
TestCacheAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
