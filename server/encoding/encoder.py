"""Phase one, seen from the API process: pictures in, pooled features out, before the prompt is expanded."""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dfmr_kernels.choices import Choice
from dfmr_kernels.controls import Method
from server.encoding.batcher import MicroBatcher
from server.encoding.cache import Entry, FeatureCache, Features
from server.encoding.content import PictureFile, as_pil, content_key, size_of
from server.encoding.decisions import NO_BUDGET, Before, Budget, Decider, Limit, Settled
from server.encoding.due import DueSemaphore, one_owner
from server.encoding.fingerprint import fixed_picture
from server.encoding.jobs import EncodedPicture, EncodeJob, EncodeResult, Measured, Wish
from server.encoding.preprocess import Box, Preprocessor
from server.encoding.protection import protected_cells
from server.encoding.tasks import all_of
from server.errors import PictureError
from server.metrics import CACHE_HITS, CACHE_MISSES, ENCODE_BATCH_SIZE, ENCODE_SECONDS, PREPROCESS_SECONDS
from server.policy import Detail, Policy, ServerSettings

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Picture(NamedTuple):
    """A picture and how its sender wants it treated: OpenAI's detail, and boxes that are not to be pooled."""

    image: Any
    detail: Detail = "auto"
    protect: tuple[Box, ...] = ()


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
        self._run_async = run
        self._run_sync = run_sync
        self._cache = FeatureCache(settings.cache_bytes, model_name)
        self._batcher = MicroBatcher(
            run, max_batch=settings.max_batch, max_queue=settings.max_queue, model_name=model_name
        )
        self._in_flight: dict[Wish, _InFlight] = {}
        self.decider = Decider(grid, self.candidates, settings.policy.aggregate)
        threads = settings.preprocess_threads or min(16, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dfmr-preprocess")
        self._turns = DueSemaphore(threads)
        self._hits, self._misses = CACHE_HITS.labels(model_name), CACHE_MISSES.labels(model_name)
        self._preprocess_seconds = PREPROCESS_SECONDS.labels(model_name)
        self._encode_seconds = ENCODE_SECONDS.labels(model_name)
        self._batch_size = ENCODE_BATCH_SIZE.labels(model_name)

    def choices(self, pictures: Sequence[Picture], policy: Policy) -> list[Choice]:
        """How each picture may be pooled.

        Raises:
            PictureError: the policy cannot be met for a picture; names its index.
        """
        choices = []
        for index, picture in enumerate(pictures):
            protected = self.protected(index, picture)
            try:
                choices.append(policy.choice(self.candidates, self.grid, picture.detail, protected))
            except ValueError as error:
                raise PictureError(index, "policy", str(error)) from error
        return choices

    def fewest(self, pictures: Sequence[Picture], policy: Policy) -> list[int]:
        """The fewest tokens that each picture can keep.

        Raises:
            PictureError: as in `choices`.
        """
        return [self.decider.fewest(choice) for choice in self.choices(pictures, policy)]

    def protected(self, index: int, picture: Picture) -> bytes | None:
        """The cells that a picture's boxes touch, one byte each, row-major; None where no cell is.

        Raises:
            PictureError: it is no picture.
        """
        if not picture.protect:
            return None
        try:
            size = size_of(picture.image)
        except PictureError as error:
            raise named(error, index) from error
        except TypeError as error:
            raise PictureError(index, "decode", f"could not be read: {error}") from error
        return protected_cells(picture.protect, size, self.preprocessor, self.grid)

    async def look_at(self, pictures: Sequence[Picture]) -> None:
        """Find out in threads what boxes need to know of pictures, so that none is decoded on the event loop for it.

        Raises:
            PictureError: one is no picture.
        """
        with one_owner(len(pictures)):
            await all_of(self.in_thread(self.protected, i, one) for i, one in enumerate(pictures) if one.protect)

    async def encode(
        self, pictures: Sequence[Picture], policy: Policy, budget: Budget = NO_BUDGET
    ) -> list[EncodedPicture]:
        """Encode a request's pictures; a failure of one cancels the others and names its index.

        Where the budget may bind, every picture is measured before any is decided on, and all are decided together.

        Raises:
            PictureError: a picture is at fault, or the policy cannot be met.
        """
        with one_owner(len(pictures)):
            return await self._encode(pictures, policy, budget)

    async def _encode(self, pictures: Sequence[Picture], policy: Policy, budget: Budget) -> list[EncodedPicture]:
        choices = self.choices(pictures, policy)
        limit = self.decider.limit(choices, budget)
        images = [picture.image for picture in pictures]
        if limit is None:
            one_by_one = (
                self._encode_one(index, image, choice, policy.method)
                for index, (image, choice) in enumerate(zip(images, choices, strict=True))
            )
            return await all_of(one_by_one)
        measured = await all_of(
            self._measure(index, image, choice, policy.method)
            for index, (image, choice) in enumerate(zip(images, choices, strict=True))
        )
        settled = await self.in_thread(self.decider.settle, [one.entry for one in measured], choices, limit)
        return await all_of(
            self._fetch(index, image, one, kept, policy.method)
            for index, (image, one, kept) in enumerate(zip(images, measured, settled, strict=True))
        )

    @property
    def in_flight(self) -> int:
        """Requests' pictures that are being preprocessed, wait for an encode call or are in one."""
        return len(self._in_flight)

    async def encode_whole(self, picture: Picture) -> EncodedPicture:
        """Every token of a picture, made anew and not remembered: the baseline neither reads the cache nor fills it."""
        (choice,) = self.choices([picture], self.policy.model_copy(update={"enabled": False, "method": "dfmr"}))
        key = await self._key_of(None, picture.image, "dfmr")
        pixels = await self.in_thread(self._pixels, None, picture.image)
        result = await self._batcher.submit(EncodeJob(pixels, choice.thresholds))
        return _encoded(key, result, result.features, cached=False)

    async def submit(self, job: EncodeJob) -> EncodeResult:
        """Encode one input beside the pictures of other requests, without the cache."""
        return await self._batcher.submit(job)

    async def in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Have a preprocessing thread do something; requests get one by their due dates."""
        async with self._turns:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    @property
    def cache(self) -> FeatureCache:
        return self._cache

    async def _encode_one(self, index: int, image: Any, choice: Choice, method: Method) -> EncodedPicture:
        key = await self._key_of(index, image, method)
        if hit := self._lookup(key, choice):
            return hit
        result, shared = await self._submit(index, image, Wish(key, choice, method, levels=False))
        (self._hits if shared else self._misses).inc()
        return _encoded(key, result, result.features, cached=shared)

    async def _measure(self, index: int, image: Any, choice: Choice, method: Method) -> Measured:
        key = await self._key_of(index, image, method)
        if (entry := self._cache.get(key)) is not None:
            return Measured(key, entry, cached=True)
        result, shared = await self._submit(index, image, Wish(key, choice, method, levels=True))
        return Measured(key, _entry(result), cached=shared)

    async def _fetch(
        self, index: int, image: Any, measured: Measured, settled: Settled, method: Method
    ) -> EncodedPicture:
        if self.decider.find(measured.entry, settled.layout) is None:
            wish = Wish(measured.key, self.decider.levels(settled.layout), method, levels=True)
            result, shared = await self._submit(index, image, wish)
            measured = Measured(measured.key, _entry(result), cached=shared)
        return self._settled(measured, settled)

    async def _submit(self, index: int, image: Any, wish: Wish) -> tuple[EncodeResult, bool]:
        """The worker's result, and whether it was on its way for another picture already."""
        shared = wish in self._in_flight
        if not shared:
            self._in_flight[wish] = _InFlight(asyncio.create_task(self._encode_fresh(wish, image)))
        in_flight = self._in_flight[wish]
        in_flight.waiters += 1
        try:
            return await asyncio.shield(in_flight.task), shared
        except PictureError as error:
            raise named(error, index) from error
        finally:
            in_flight.waiters -= 1
            if in_flight.waiters == 0:
                in_flight.task.cancel()
                del self._in_flight[wish]

    async def _encode_fresh(self, wish: Wish, image: Any) -> EncodeResult:
        pixels = await self.in_thread(self._pixels, None, image)
        result = await self._batcher.submit(wish.job(pixels))
        self._remember(wish.key, result)
        return result

    async def _key_of(self, index: int | None, image: Any, method: Method) -> bytes:
        if isinstance(image, PictureFile):  # It was hashed when it was read.
            return self._key(index, image, method)
        return await self.in_thread(self._key, index, image, method)

    def _remember(self, key: bytes, result: EncodeResult) -> None:
        for features in result.pieces:
            self._cache.put(key, result.scores, features, result.windows)

    async def warm_up(self) -> torch.Tensor:
        """Encode a fixed picture, so that the first request does not pay for compiling kernels and first touches.

        Returns:
            its features ``(tokens, channels)``, none of them pooled away, by which the encoder is known.

        Raises:
            EncodeFailedError: it could not be encoded; a server that cannot encode should not start.
        """
        picture = fixed_picture(self.preprocessor.height, self.preprocessor.width)
        whole = tuple(math.inf if s == 1 else -math.inf for s in self.candidates)
        (result,) = await self._run_async([EncodeJob(picture, whole)])
        if isinstance(result, Exception):
            raise result
        return result.features.tensor

    def encode_sync(
        self, pictures: Sequence[Picture], policy: Policy, budget: Budget = NO_BUDGET
    ) -> list[EncodedPicture]:
        """`encode` without an event loop: one caller, whole batches at a time."""
        choices = self.choices(pictures, policy)
        limit = self.decider.limit(choices, budget)
        images, method = [picture.image for picture in pictures], policy.method
        keys = list(self._threads.map(lambda index: self._key(index, images[index], method), range(len(images))))
        wishes = [Wish(key, choice, method, limit is not None) for key, choice in zip(keys, choices, strict=True)]
        if limit is not None:
            return self._together_sync(images, wishes, limit)
        hits = {i: hit for i, wish in enumerate(wishes) if (hit := self._lookup(wish.key, wish.choice))}
        fresh = self._run(images, {i: wish for i, wish in enumerate(wishes) if i not in hits})
        for i, (result, cached) in fresh.items():
            (self._hits if cached else self._misses).inc()
            hits[i] = _encoded(keys[i], result, result.features, cached=cached)
        return [hits[i] for i in range(len(wishes))]

    def _together_sync(self, images: Sequence[Any], wishes: Sequence[Wish], limit: Limit) -> list[EncodedPicture]:
        known = {i: entry for i, wish in enumerate(wishes) if (entry := self._cache.get(wish.key))}
        fresh = self._run(images, {i: wish for i, wish in enumerate(wishes) if i not in known})
        measured = [
            Measured(wish.key, known[i], True) if i in known else Measured(wish.key, _entry(fresh[i][0]), fresh[i][1])
            for i, wish in enumerate(wishes)
        ]
        settled = self.decider.settle([one.entry for one in measured], [wish.choice for wish in wishes], limit)
        lacking = {
            i: wishes[i].at_levels(self.decider.levels(kept.layout))
            for i, (one, kept) in enumerate(zip(measured, settled, strict=True))
            if self.decider.find(one.entry, kept.layout) is None
        }
        for i, (result, cached) in self._run(images, lacking).items():
            measured[i] = Measured(wishes[i].key, _entry(result), cached)
        return [self._settled(one, kept) for one, kept in zip(measured, settled, strict=True)]

    def _settled(self, measured: Measured, settled: Settled) -> EncodedPicture:
        """A picture whose features are there, in the layout that was settled on."""
        features = self.decider.find(measured.entry, settled.layout)
        assert features is not None
        (self._hits if measured.cached else self._misses).inc()
        return _encoded(measured.key, measured.entry, features, cached=measured.cached, before=settled.before)

    def _run(self, images: Sequence[Any], wishes: dict[int, Wish]) -> dict[int, tuple[EncodeResult, bool]]:
        """By picture's index the worker's result, and whether it was made for an earlier picture."""
        first: dict[Wish, int] = {}
        for index, wish in wishes.items():
            first.setdefault(wish, index)
        order = list(first.values())
        pixels = self._threads.map(self._pixels, order, (images[index] for index in order))
        jobs = [wishes[index].job(p) for p, index in zip(pixels, order, strict=True)]
        results: dict[Wish, EncodeResult] = {}
        for start in range(0, len(jobs), self._max_batch):
            batch = jobs[start : start + self._max_batch]
            began = time.perf_counter()
            made = self._run_sync(batch)
            self._encode_seconds.observe(time.perf_counter() - began)
            self._batch_size.observe(len(batch))
            for index, result in zip(order[start:], made, strict=False):
                if isinstance(result, Exception):
                    raise named(result, index)
                self._remember(wishes[index].key, result)
                results[wishes[index]] = result
        return {index: (results[wish], first[wish] != index) for index, wish in wishes.items()}

    def _lookup(self, key: bytes, choice: Choice) -> EncodedPicture | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        features = self.decider.find(entry, self.decider.layout(entry, choice))
        if features is None:
            return None
        self._hits.inc()
        return _encoded(key, entry, features, cached=True)

    def _key(self, index: int | None, image: Any, method: Method) -> bytes:
        try:
            return content_key(image) + (b"" if method == "dfmr" else method.encode())
        except Exception as error:
            raise PictureError(index, "decode", f"could not be read: {error}") from error

    def _pixels(self, index: int | None, image: Any) -> NDArray[np.uint8]:
        start = time.perf_counter()
        try:
            return self.preprocessor(as_pil(image))
        except PictureError as error:
            raise named(error, index) from error
        except Exception as error:
            raise PictureError(index, "preprocess", f"could not be preprocessed: {error}") from error
        finally:
            self._preprocess_seconds.observe(time.perf_counter() - start)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def named(error: Exception, index: int | None) -> Exception:
    """The same picture error with the index that only the request knows."""
    if isinstance(error, PictureError) and error.index is None:
        return type(error)(index, error.reason, error.message)
    return error


def _entry(result: EncodeResult) -> Entry:
    return Entry(result.scores, {features.key: features for features in result.pieces}, result.windows)


def _encoded(
    key: bytes, measured: Entry | EncodeResult, features: Features, *, cached: bool, before: Before | None = None
) -> EncodedPicture:
    name = f"{key.hex()}-{features.name}"
    return EncodedPicture(features, measured.scores, name, cached, before, measured.windows)
