"""The feature cache: what phase one made of a picture, so that one that is sent again is not encoded again."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from dfmr_kernels.regions import Layout
from server.metrics import CACHE_BYTES, CACHE_EVICTIONS

_ENTRY_OVERHEAD_BYTES = 1024
"""Keys, scores and Python objects of an entry, so that entries without features are bounded too."""


@dataclass(frozen=True)
class Features:
    """One picture, pooled.

    Attributes:
        tensor: ``(tokens, channels)``, in the encoder's dtype, on the CPU: windows in row-major order, or, where there
            are several factors, block after block and row-major inside each.
        grid: rows and columns of windows; None where there are several factors.
        factor: the pooling factor; None where there are several.
        layout: which factor applies where; None where there is one.
    """

    tensor: torch.Tensor
    grid: tuple[int, int] | None
    factor: int | None
    layout: Layout | None = None

    @property
    def key(self) -> "int | Layout":
        """What was kept, among all that may be kept of one picture."""
        kept = self.factor if self.layout is None else self.layout
        assert kept is not None
        return kept

    @property
    def name(self) -> str:
        """`key` as text."""
        return str(self.factor) if self.layout is None else self.layout.name

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


@dataclass
class Entry:
    """What is known of one picture, whatever the policy, and its features in the ways that were asked for.

    Attributes:
        scores: one per candidate factor.
        features: by pooling factor, or by layout where there are several factors.
        windows: ``(n,)`` float32, the window values at every candidate, one map after another.
    """

    scores: tuple[float, ...]
    features: dict[int | Layout, Features] = field(default_factory=dict)
    windows: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        measured = 0 if self.windows is None else self.windows.nbytes
        return _ENTRY_OVERHEAD_BYTES + measured + sum(f.nbytes for f in self.features.values())


class Whole(Protocol):
    """Something that is kept as it is, as a video under one policy."""

    @property
    def nbytes(self) -> int: ...


class FeatureCache:
    """Pictures and videos by content, least recently used out first, bounded in bytes.

    Scores and window values do not depend on the policy, so a picture that was seen under one policy can be decided
    under another without the encoder; only a factor that was never asked for needs a new encode. Not thread-safe: one
    event loop, or one caller, owns it.
    """

    def __init__(self, max_bytes: int, model_name: str) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0
        self._gauge = CACHE_BYTES.labels(model_name)
        self._evictions = CACHE_EVICTIONS.labels(model_name)
        self._gauge.set(0)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return self._bytes

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0
        self._gauge.set(0)

    def get(self, key: bytes) -> Entry | None:
        return self._found(key)

    def get_whole(self, key: Hashable) -> Any:
        """What `put_whole` was given under this key, or None."""
        return self._found(key)

    def _found(self, key: Hashable) -> Any:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(
        self, key: bytes, scores: tuple[float, ...], features: Features, windows: torch.Tensor | None = None
    ) -> None:
        """Remember a picture's scores and its features in one way; a picture larger than the bound is not kept."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.nbytes
        entry = Entry(scores, {} if entry is None else entry.features, windows)
        entry.features[features.key] = features
        self._add(key, entry)

    def put_whole(self, key: Hashable, entry: Whole) -> None:
        """Remember something under a key that no picture has; what is larger than the bound is not kept."""
        if (old := self._entries.pop(key, None)) is not None:
            self._bytes -= old.nbytes
        self._add(key, entry)

    def _add(self, key: Hashable, entry: Whole) -> None:
        if entry.nbytes <= self._max_bytes:
            self._entries[key] = entry
            self._bytes += entry.nbytes
        while self._bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= oldest.nbytes
            self._evictions.inc()
        self._gauge.set(self._bytes)
