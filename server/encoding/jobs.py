"""What goes to the worker for a picture, what comes back, and what the prompt is given."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dfmr_kernels.choices import Choice
from dfmr_kernels.controls import Method
from server.encoding.cache import Entry, Features
from server.encoding.decisions import Before


class EncodeJob(NamedTuple):
    """What the worker needs.

    Attributes:
        pixels: ``(3, height, width)`` uint8.
        thresholds, block, protected, max_tokens: how the picture may be pooled, as in `Choice`.
        method: how its tokens become fewer.
        levels: whether to send the whole map at every factor that may still be chosen, for a joint decision.
    """

    pixels: NDArray[np.uint8]
    thresholds: tuple[float, ...]
    method: Method = "dfmr"
    block: int = 0
    protected: bytes | None = None
    max_tokens: int | None = None
    levels: bool = False

    @property
    def choice(self) -> Choice:
        return Choice(self.thresholds, self.block, self.protected, self.max_tokens)


def joined(jobs: Sequence[EncodeJob]) -> bytes:
    """The pixels of a batch one after another, in a single copy."""
    return b"".join(job.pixels.data for job in jobs)


class EncodeResult(NamedTuple):
    """What the worker made of a job.

    Attributes:
        scores: one per candidate factor.
        windows: ``(n,)`` float32, the window values at every candidate, one map after another.
        pieces: the features, as they were decided on or at every level that was asked for.
    """

    scores: tuple[float, ...]
    windows: torch.Tensor
    pieces: tuple[Features, ...]

    @property
    def features(self) -> Features:
        """The decided features, of a job that asked for no levels."""
        return self.pieces[0]


class EncodedPicture(NamedTuple):
    """A picture ready for the prompt.

    Attributes:
        features: the kept tokens.
        scores: one per candidate factor.
        key: identity of picture and kept tokens, for prefix caching and the engine's encoder cache.
        cached: whether the encoder was spared.
        before: what it would have kept without a budget, if that is more.
        windows: the window values that decisions are made from, as in `EncodeResult`.
    """

    features: Features
    scores: tuple[float, ...]
    key: str
    cached: bool
    before: Before | None = None
    windows: torch.Tensor | None = None


class Wish(NamedTuple):
    """One way to encode one picture; equal ones are encoded once."""

    key: bytes
    choice: Choice
    method: Method
    levels: bool

    def job(self, pixels: NDArray[np.uint8]) -> EncodeJob:
        thresholds, block, protected, max_tokens = self.choice
        return EncodeJob(pixels, thresholds, self.method, block, protected, max_tokens, self.levels)

    def at_levels(self, choice: Choice) -> "Wish":
        """The same picture's whole map at the levels of another choice."""
        return self._replace(choice=choice, levels=True)


class Measured(NamedTuple):
    """A picture whose features at every level are at hand, if they were not evicted from the cache."""

    key: bytes
    entry: Entry
    cached: bool
