"""Phase one, seen from the API process: pictures in, pooled features out, before the prompt is expanded."""

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from vllm.multimodal.media import MediaWithBytes

from dfmr_kernels.controls import Method
from dfmr_kernels.decide import decide
from server.encoding.batcher import MicroBatcher
from server.encoding.cache import FeatureCache, Features
from server.encoding.fingerprint import fixed_picture
from server.encoding.preprocess import Preprocessor
from server.errors import PictureError
from server.metrics import CACHE_HITS, CACHE_MISSES, ENCODE_BATCH_SIZE, ENCODE_SECONDS, PREPROCESS_SECONDS
from server.policy import Detail, Policy, ServerSettings


class Picture(NamedTuple):
    """A decoded picture and how its sender wants it treated."""

    image: Any
    detail: Detail = "auto"


class EncodeJob(NamedTuple):
    """What the worker needs: ``(3, height, width)`` uint8 pixels, one threshold per candidate factor, the method."""

    pixels: NDArray[np.uint8]
    thresholds: tuple[float, ...]
    method: Method = "dfmr"


class EncodeResult(NamedTuple):
    """What the worker made of a job: the score at every candidate factor, and the features at the chosen one."""

    scores: tuple[float, ...]
    features: Features


class EncodedPicture(NamedTuple):
    """A picture ready for the prompt.

    Attributes:
        features: the kept tokens.
        scores: one per candidate factor.
        key: identity of picture and factor, for prefix caching and the engine's encoder cache.
        cached: whether the encoder was spared.
    """

    features: Features
    scores: tuple[float, ...]
    key: str
    cached: bool


AsyncRun = Callable[[Sequence[EncodeJob]], Awaitable[Sequence[EncodeResult | Exception]]]
SyncRun = Callable[[Sequence[EncodeJob]], Sequence[EncodeResult | Exception]]


@dataclass
class _InFlight:
    task: asyncio.Task[EncodeResult]
    waiters: int = 0


class PictureEncoder:
    """Preprocess, cache, micro-batch, encode.

    Args:
        settings: the operator's policy and bounds.
        preprocessor: the checkpoint's, up to uint8.
        grid: rows and columns of the encoder's feature map.
        model_name: label of the metrics.
        run: encodes a batch on the engine's worker; for the server.
        run_sync: the same, blocking; for offline use.
        candidates: pooling factors that are measured; None for those of the server's own policy.
    """

    def __init__(
        self,
        settings: ServerSettings,
        preprocessor: Preprocessor,
        grid: tuple[int, int],
        model_name: str,
        *,
        run: AsyncRun,
        run_sync: SyncRun,
        candidates: Sequence[int] | None = None,
    ) -> None:
        self.policy = settings.policy
        self.candidates = settings.policy.candidates if candidates is None else tuple(candidates)
        self.grid = grid
        self.preprocessor = preprocessor
        self._max_batch = settings.max_batch
        self._run = run
        self._run_sync = run_sync
        self._cache = FeatureCache(settings.cache_bytes, model_name)
        self._batcher = MicroBatcher(
            run, max_batch=settings.max_batch, max_queue=settings.max_queue, model_name=model_name
        )
        self._in_flight: dict[tuple[bytes, tuple[float, ...]], _InFlight] = {}
        self._threads = ThreadPoolExecutor(
            settings.preprocess_threads or min(16, os.cpu_count() or 1), thread_name_prefix="dfmr-preprocess"
        )
        self._hits, self._misses = CACHE_HITS.labels(model_name), CACHE_MISSES.labels(model_name)
        self._preprocess_seconds = PREPROCESS_SECONDS.labels(model_name)
        self._encode_seconds = ENCODE_SECONDS.labels(model_name)
        self._batch_size = ENCODE_BATCH_SIZE.labels(model_name)

    def thresholds(self, pictures: Sequence[Picture], policy: Policy) -> list[tuple[float, ...]]:
        """One row of thresholds per picture.

        Raises:
            PictureError: the policy cannot be met for a picture; names its index.
        """
        rows = []
        for index, picture in enumerate(pictures):
            try:
                rows.append(policy.thresholds(self.candidates, self.grid, picture.detail))
            except ValueError as error:
                raise PictureError(index, "policy", str(error)) from error
        return rows

    async def encode(self, pictures: Sequence[Picture], policy: Policy) -> list[EncodedPicture]:
        """Encode a request's pictures; a failure of one cancels the others and names its index."""
        rows = self.thresholds(pictures, policy)
        tasks = [
            asyncio.create_task(self._encode_one(index, picture.image, row, policy.method))
            for index, (picture, row) in enumerate(zip(pictures, rows, strict=True))
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    @property
    def in_flight(self) -> int:
        """Requests' pictures that are being preprocessed, wait for an encode call or are in one."""
        return len(self._in_flight)

    async def encode_whole(self, picture: Picture) -> EncodedPicture:
        """Every token of a picture, made anew and not remembered: the baseline neither reads the cache nor fills it."""
        (row,) = self.thresholds([picture], self.policy.model_copy(update={"enabled": False, "method": "dfmr"}))
        loop = asyncio.get_running_loop()
        key = await loop.run_in_executor(self._threads, self._key, None, picture.image, "dfmr")
        pixels = await loop.run_in_executor(self._threads, self._pixels, None, picture.image)
        return _encoded(key, await self._batcher.submit(EncodeJob(pixels, row)), cached=False)

    async def _encode_one(self, index: int, image: Any, row: tuple[float, ...], method: Method) -> EncodedPicture:
        loop = asyncio.get_running_loop()
        key = await loop.run_in_executor(self._threads, self._key, index, image, method)
        if hit := self._lookup(key, row):
            return hit
        job = (key, row)
        shared = job in self._in_flight
        if not shared:
            self._in_flight[job] = _InFlight(asyncio.create_task(self._encode_fresh(job, image, method)))
        in_flight = self._in_flight[job]
        in_flight.waiters += 1
        try:
            result = await asyncio.shield(in_flight.task)
        except PictureError as error:
            raise named(error, index) from error
        finally:
            in_flight.waiters -= 1
            if in_flight.waiters == 0:
                in_flight.task.cancel()
                del self._in_flight[job]
        (self._hits if shared else self._misses).inc()
        return _encoded(key, result, cached=shared)

    async def _encode_fresh(self, job: tuple[bytes, tuple[float, ...]], image: Any, method: Method) -> EncodeResult:
        key, row = job
        pixels = await asyncio.get_running_loop().run_in_executor(self._threads, self._pixels, None, image)
        result = await self._batcher.submit(EncodeJob(pixels, row, method))
        self._cache.put(key, result.scores, result.features)
        return result

    async def warm_up(self) -> torch.Tensor:
        """Encode a fixed picture, so that the first request does not pay for compiling kernels and first touches.

        Returns:
            its features ``(tokens, channels)``, none of them pooled away, by which the encoder is known.

        Raises:
            EncodeFailedError: it could not be encoded; a server that cannot encode should not start.
        """
        picture = fixed_picture(self.preprocessor.height, self.preprocessor.width)
        whole = tuple(math.inf if s == 1 else -math.inf for s in self.candidates)
        (result,) = await self._run([EncodeJob(picture, whole)])
        if isinstance(result, Exception):
            raise result
        return result.features.tensor

    def encode_sync(self, pictures: Sequence[Picture], policy: Policy) -> list[EncodedPicture]:
        """`encode` without an event loop: one caller, whole batches at a time."""
        rows = self.thresholds(pictures, policy)
        method = policy.method
        keys = list(self._threads.map(lambda index: self._key(index, pictures[index].image, method), range(len(rows))))
        jobs_of = list(zip(keys, rows, strict=True))
        encoded = [self._lookup(key, row) for key, row in jobs_of]
        first = {job: index for index, job in reversed(list(enumerate(jobs_of)))}
        missing = [index for index, hit in enumerate(encoded) if hit is None and first[jobs_of[index]] == index]
        pixels = self._threads.map(self._pixels, missing, (pictures[index].image for index in missing))
        jobs = [EncodeJob(p, rows[index], method) for p, index in zip(pixels, missing, strict=True)]
        for start in range(0, len(jobs), self._max_batch):
            batch = jobs[start : start + self._max_batch]
            began = time.perf_counter()
            results = self._run_sync(batch)
            self._encode_seconds.observe(time.perf_counter() - began)
            self._batch_size.observe(len(batch))
            for index, result in zip(missing[start:], results, strict=False):
                if isinstance(result, Exception):
                    raise named(result, index)
                self._misses.inc()
                self._cache.put(keys[index], result.scores, result.features)
                encoded[index] = _encoded(keys[index], result, cached=False)
        for index, job in enumerate(jobs_of):
            if encoded[index] is None and (twin := encoded[first[job]]):
                self._hits.inc()
                encoded[index] = twin._replace(cached=True)
        return [picture for picture in encoded if picture is not None]

    def _lookup(self, key: bytes, row: tuple[float, ...]) -> EncodedPicture | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        features = entry.features.get(decide(entry.scores, row, self.candidates))
        if features is None:
            return None
        self._hits.inc()
        return _encoded(key, EncodeResult(entry.scores, features), cached=True)

    def _key(self, index: int | None, image: Any, method: Method) -> bytes:
        try:
            return content_key(image) + (b"" if method == "dfmr" else method.encode())
        except Exception as error:
            raise PictureError(index, "decode", f"could not be read: {error}") from error

    def _pixels(self, index: int | None, image: Any) -> NDArray[np.uint8]:
        start = time.perf_counter()
        try:
            return self.preprocessor(as_pil(image))
        except Exception as error:
            raise PictureError(index, "preprocess", f"could not be preprocessed: {error}") from error
        finally:
            self._preprocess_seconds.observe(time.perf_counter() - start)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def named(error: Exception, index: int) -> Exception:
    """The same picture error with the index that only the request knows."""
    if isinstance(error, PictureError) and error.index is None:
        return PictureError(index, error.reason, error.message)
    return error


def content_key(image: Any) -> bytes:
    """Identity of a picture's content: of its file's bytes where they are known, else of its pixels."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(image, MediaWithBytes):
        digest.update(repr(image.io_config).encode())
        digest.update(image.original_bytes)
    else:
        picture = as_pil(image)
        digest.update(f"{picture.mode} {picture.size}".encode())
        digest.update(repr(picture.getpalette("RGB") if picture.mode in ("P", "PA") else None).encode())
        digest.update(picture.tobytes())
    return digest.digest()


def as_pil(image: Any) -> Image.Image:
    """A picture as vLLM hands it over, or as offline callers may pass it, as a PIL image.

    Args:
        image: a PIL image; one with its file's bytes; or a uint8 array or tensor ``(rows, columns, channels)``.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(image, MediaWithBytes):
        image = image.media
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a picture, got {type(image).__name__}")
    return image


def _encoded(key: bytes, result: EncodeResult, *, cached: bool) -> EncodedPicture:
    return EncodedPicture(result.features, result.scores, f"{key.hex()}-{result.features.factor}", cached)
