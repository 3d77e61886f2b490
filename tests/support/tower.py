"""A small deterministic encoder with the real DFMR behind it, and pictures for it."""

import asyncio
import io
import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfmr_kernels import pyramid, select
from dfmr_kernels.regions import tokens_of
from server.encoding.decisions import features_of
from server.encoding.encoder import PictureEncoder
from server.encoding.jobs import EncodedPicture, EncodeJob, EncodeResult
from server.encoding.preprocess import Preprocessor
from server.errors import PictureError
from server.policy import Policy, ServerSettings

SIDE, PATCH, CHANNELS = 32, 4, 16
GRID = (SIDE // PATCH, SIDE // PATCH)
FACTORS = (1, 2, 4)
POLICY = Policy(tau={2: 0.2, 4: 0.02}, factors=FACTORS)
POISON = (255, 0, 255)
"""Colour of a picture of which the tower makes values that are not finite."""

_names = (f"test-encoder-{i}" for i in count())


def unused_name() -> str:
    """A model name whose metrics nobody has counted in."""
    return next(_names)


class Tower:
    """A random convolution in place of a vision tower; DFMR behind it is the real one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.weights = torch.randn(CHANNELS, 3, PATCH, PATCH) / PATCH
        self.calls: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.failure: Exception | None = None

    @property
    def encoded(self) -> int:
        return sum(self.calls)

    def sync(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult | Exception]:
        self.calls.append(len(jobs))
        if self.failure is not None:
            raise self.failure
        pixels = torch.from_numpy(np.stack([job.pixels for job in jobs])).float() / 255
        maps = torch.nn.functional.conv2d(pixels, self.weights, stride=PATCH).permute(0, 2, 3, 1)
        poisoned = [tuple(job.pixels[:, 0, 0]) == POISON for job in jobs]
        choices, levels = [job.choice for job in jobs], [job.levels for job in jobs]
        selection = select(pyramid(maps, FACTORS), FACTORS, choices, levels)
        results: list[EncodeResult | Exception] = []
        start = 0
        for picture, bad in zip(selection.pictures, poisoned, strict=True):
            assert picture is not None
            pieces = []
            for layout in picture.layouts:
                tensor = selection.features[start : start + tokens_of(GRID, layout)].clone()
                start += len(tensor)
                pieces.append(features_of(tensor, GRID, layout))
            result = EncodeResult(picture.scores, picture.windows, tuple(pieces))
            results.append(PictureError(None, "nonfinite", "made values that are not finite") if bad else result)
        return results

    async def __call__(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult | Exception]:
        results = self.sync(jobs)
        while not self.open.is_set():
            await asyncio.sleep(0)
        return results


def encoder_of(tower: Tower, *, name: str | None = None, **settings: Any) -> PictureEncoder:
    return PictureEncoder(
        ServerSettings(policy=POLICY, preprocess_threads=2, **settings),
        Preprocessor(SIDE, SIDE, SIDE, Image.Resampling.BICUBIC, None, 1 / 255, (0.0,) * 3, (1.0,) * 3),
        GRID,
        name or unused_name(),
        run=tower,
        run_sync=tower.sync,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def flat(level: int = 90) -> Image.Image:
    return Image.new("RGB", (50, 40), (level, level, level))


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def gentle(seed: int) -> Image.Image:
    """Something between a flat picture and noise."""
    coarse = np.random.default_rng(seed).integers(100, 140, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((50, 40), Image.Resampling.BICUBIC)


def truncated() -> Image.Image:
    """A file that ends too early, which PIL notices when pixels are asked for."""
    file = io.BytesIO()
    noise(1).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:200]))


def assert_same(one: Sequence[EncodedPicture], other: Sequence[EncodedPicture]) -> None:
    assert [(p.key, p.scores, p.features.grid, p.features.factor) for p in one] == [
        (p.key, p.scores, p.features.grid, p.features.factor) for p in other
    ]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.features.tensor, b.features.tensor, rtol=0, atol=0)
