"""The feature cache: what phase one made of a picture, so that one that is sent again is not encoded again."""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch

from server.metrics import CACHE_BYTES, CACHE_EVICTIONS

_ENTRY_OVERHEAD_BYTES = 1024
"""Keys, scores and Python objects of an entry, so that entries without features are bounded too."""


@dataclass(frozen=True)
class Features:
    """One picture, pooled.

    Attributes:
        tensor: ``(tokens, channels)``, windows in row-major order, in the encoder's dtype, on the CPU.
        grid: rows and columns of windows.
        factor: the pooling factor.
    """

    tensor: torch.Tensor
    grid: tuple[int, int]
    factor: int

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


@dataclass
class Entry:
    """What is known of one picture: its score at every candidate factor, and its features at the factors asked for."""

    scores: tuple[float, ...]
    features: dict[int, Features] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return _ENTRY_OVERHEAD_BYTES + sum(f.nbytes for f in self.features.values())


class FeatureCache:
    """Pictures by content, least recently used out first, bounded in bytes.

    Scores do not depend on the policy, so a picture that was seen under one policy can be decided under another
    without the encoder; only a factor that was never asked for needs a new encode. Not thread-safe: one event loop, or
    one caller, owns it.
    """

    def __init__(self, max_bytes: int, model_name: str) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._bytes = 0
        self._gauge = CACHE_BYTES.labels(model_name)
        self._evictions = CACHE_EVICTIONS.labels(model_name)
        self._gauge.set(0)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return self._bytes

    def get(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, scores: tuple[float, ...], features: Features) -> None:
        """Remember a picture's scores and its features at one factor; a picture larger than the bound is not kept."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.nbytes
        entry = Entry(scores, {} if entry is None else entry.features)
        entry.features[features.factor] = features
        if entry.nbytes <= self._max_bytes:
            self._entries[key] = entry
            self._bytes += entry.nbytes
        while self._bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= oldest.nbytes
            self._evictions.inc()
        self._gauge.set(self._bytes)
