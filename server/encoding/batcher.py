"""Collects pictures of many requests into one encode call, while the one before is in flight."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.encoding.due import DueQueue
from server.errors import EncodeFailedError, EncoderOverloadedError
from server.metrics import ENCODE_BATCH_SIZE, ENCODE_QUEUE, ENCODE_QUEUE_SECONDS, ENCODE_SECONDS

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting(Generic[Job, Result]):
    job: Job
    done: asyncio.Future[Result]
    since: float


class MicroBatcher(Generic[Job, Result]):
    """Runs one call at a time; what arrives meanwhile forms the next batch, so an idle server never waits for company.

    Requests are served by their due dates, without larger ones in the same batch, and one with many pictures fills half
    of a batch at most: what comes after it waits for a shorter call, and so does decoding.

    Args:
        run: encodes a batch and returns, in its order, a result or the exception that belongs to that job alone.
        max_batch: most jobs in one call.
        max_queue: most jobs waiting; one more raises `EncoderOverloadedError`.
        model_name: label of the metrics.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_batch: int,
        max_queue: int,
        model_name: str,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._share = math.ceil(max_batch / 2)
        self._max_queue = max_queue
        self._waiting: DueQueue[_Waiting[Job, Result]] = DueQueue()
        self._drain: asyncio.Task[None] | None = None
        self._queue = ENCODE_QUEUE.labels(model_name)
        self._queue.set(0)
        self._queue_seconds = ENCODE_QUEUE_SECONDS.labels(model_name)
        self._encode_seconds = ENCODE_SECONDS.labels(model_name)
        self._batch_size = ENCODE_BATCH_SIZE.labels(model_name)

    async def submit(self, job: Job) -> Result:
        """Wait for a job's result. A caller that is cancelled while its job waits takes the job with it.

        Raises:
            EncoderOverloadedError: the queue is full.
        """
        if len(self._waiting) >= self._max_queue:
            raise EncoderOverloadedError(self._max_queue)
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(job, done, time.perf_counter())
        self._waiting.put(waiting)
        self._queue.set(len(self._waiting))
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._encode_until_empty())
        try:
            return await done
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(waiting)
                self._queue.set(len(self._waiting))
            raise

    async def _encode_until_empty(self) -> None:
        while batch := self._next_batch():
            start = time.perf_counter()
            for waiting in batch:
                self._queue_seconds.observe(start - waiting.since)
            self._batch_size.observe(len(batch))
            try:
                results = await self._run([waiting.job for waiting in batch])
                if len(results) != len(batch):
                    raise RuntimeError(f"{len(batch)} pictures were encoded, {len(results)} came back")
            except Exception as error:
                results = [error] * len(batch)
            except asyncio.CancelledError:  # of the call, by an engine that shuts down
                results = [EncodeFailedError("the call was cancelled")] * len(batch)
            self._encode_seconds.observe(time.perf_counter() - start)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.done.done():
                    continue
                if isinstance(result, Exception):
                    waiting.done.set_exception(result)
                else:
                    waiting.done.set_result(result)

    def _next_batch(self) -> list[_Waiting[Job, Result]]:
        batch: list[_Waiting[Job, Result]] = []
        while self._waiting and not batch:
            taken = self._waiting.take_some(self._max_batch, self._share)
            batch = [waiting for waiting in taken if not waiting.done.cancelled()]
        self._queue.set(len(self._waiting))
        return batch
