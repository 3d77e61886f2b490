"""`MicroBatcher` runs one call at a time and puts what arrives meanwhile into the next."""

import asyncio
from collections.abc import Sequence
from itertools import count

import pytest
from prometheus_client import REGISTRY

from server.encoding.batcher import MicroBatcher
from server.encoding.due import one_owner
from server.errors import EncoderOverloadedError

_names = (f"test-batcher-{i}" for i in count())


class Doubler:
    """An encoder of numbers that finishes a call only when it is told to, and fails on negative ones."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.active = 0
        self.may_finish = asyncio.Semaphore(0)

    async def __call__(self, jobs: Sequence[int]) -> list[int | Exception]:
        assert self.active == 0, "two calls at a time"
        self.active += 1
        self.calls.append(list(jobs))
        try:
            await self.may_finish.acquire()
        finally:
            self.active -= 1
        return [2 * job if job >= 0 else ValueError(f"bad job {job}") for job in jobs]

    def finish(self, calls: int = 1) -> None:
        for _ in range(calls):
            self.may_finish.release()


@pytest.fixture
def name() -> str:
    return next(_names)


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def batcher(doubler: Doubler, name: str) -> MicroBatcher[int, int]:
    return MicroBatcher(doubler, max_batch=4, max_queue=6, model_name=name)


async def settle() -> None:
    """Let everything that can run without outside help run; no time passes."""
    for _ in range(20):
        await asyncio.sleep(0)


async def submitted(batcher: MicroBatcher[int, int], *jobs: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(batcher.submit(job)) for job in jobs]
    await settle()
    return tasks


async def test_an_idle_batcher_starts_at_once_with_what_it_has(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    (task,) = await submitted(batcher, 7)
    assert doubler.calls == [[7]]
    doubler.finish()
    assert await task == 14


async def test_what_arrives_during_a_call_forms_the_next_batch(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    tasks = await submitted(batcher, 1)
    tasks += await submitted(batcher, 2)
    tasks += await submitted(batcher, 3, 4)
    assert doubler.calls == [[1]]
    doubler.finish()
    await settle()
    assert doubler.calls == [[1], [2, 3, 4]]
    doubler.finish()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]


async def test_a_result_is_handed_over_before_the_next_batch_is_done(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    first, second = await submitted(batcher, 1) + await submitted(batcher, 2)
    doubler.finish()
    assert await first == 2
    assert not second.done()
    doubler.finish()
    assert await second == 4


async def test_a_batch_holds_no_more_than_its_bound(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
    tasks = await submitted(batcher, 0) + await submitted(batcher, *range(1, 7))
    doubler.finish(3)
    await asyncio.gather(*tasks)
    assert doubler.calls == [[0], [1, 2, 3, 4], [5, 6]]


async def test_one_job_more_than_the_queue_holds_is_refused(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
    tasks = await submitted(batcher, 0) + await submitted(batcher, *range(1, 7))
    with pytest.raises(EncoderOverloadedError, match="6 pictures") as caught:
        await batcher.submit(7)
    assert caught.value.http_status == 503
    doubler.finish(3)
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12]


async def test_a_full_queue_takes_jobs_again_once_it_has_drained(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    tasks = await submitted(batcher, 0) + await submitted(batcher, *range(1, 7))
    with pytest.raises(EncoderOverloadedError):
        await batcher.submit(7)
    doubler.finish(4)
    await asyncio.gather(*tasks)
    assert await batcher.submit(8) == 16


async def test_a_cancelled_job_is_not_encoded(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
    running, dropped, kept = await submitted(batcher, 1) + await submitted(batcher, 2, 3)
    dropped.cancel()
    doubler.finish(2)
    assert await asyncio.gather(running, kept) == [2, 6]
    assert doubler.calls == [[1], [3]]
    assert dropped.cancelled()


async def test_a_batch_of_cancelled_jobs_only_is_not_run(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
    running, *dropped = await submitted(batcher, 1) + await submitted(batcher, 2, 3)
    for task in dropped:
        task.cancel()
    doubler.finish(9)
    await running
    await settle()
    assert doubler.calls == [[1]]
    assert await batcher.submit(4) == 8


async def test_a_cancelled_job_gives_its_place_in_the_queue_back(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    tasks = await submitted(batcher, 0) + await submitted(batcher, *range(1, 7))
    for task in tasks[1:]:
        task.cancel()
    await settle()
    last = asyncio.create_task(batcher.submit(7))
    doubler.finish(2)
    assert await last == 14


async def test_cancelling_a_caller_whose_job_is_running_leaves_its_batch_alone(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    _, gone, mate = await submitted(batcher, 1) + await submitted(batcher, 2, 3)
    doubler.finish()
    await settle()
    assert doubler.calls[-1] == [2, 3]
    gone.cancel()
    doubler.finish()
    assert await mate == 6


async def test_an_exception_for_one_job_fails_that_job_only(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
    tasks = await submitted(batcher, 1) + await submitted(batcher, 2, -3, 4)
    doubler.finish(2)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert str(results[2]) == "bad job -3"
    assert [*results[:2], results[3]] == [2, 4, 8]


async def test_an_exception_of_a_call_fails_its_batch_and_the_batcher_lives_on(name: str) -> None:
    calls = 0

    async def run(jobs: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the worker is gone")
        return list(jobs)

    batcher = MicroBatcher(run, max_batch=2, max_queue=9, model_name=name)
    results = await asyncio.gather(*(batcher.submit(job) for job in range(4)), return_exceptions=True)
    assert [str(result) for result in results] == ["the worker is gone", "the worker is gone", "2", "3"]
    assert await batcher.submit(5) == 5


async def test_a_call_that_answers_for_too_few_jobs_leaves_nobody_waiting(name: str) -> None:
    async def run(jobs: Sequence[int]) -> list[int]:
        return list(jobs)[:-1]

    batcher = MicroBatcher(run, max_batch=4, max_queue=9, model_name=name)
    tasks = [asyncio.create_task(batcher.submit(job)) for job in range(3)]
    done, _ = await asyncio.wait(tasks, timeout=1)
    assert len(done) == 3
    assert any(task.exception() for task in done)


async def test_a_call_that_is_cancelled_from_below_leaves_nobody_waiting(name: str) -> None:
    """An engine that shuts down cancels the futures of its RPCs."""

    async def run(jobs: Sequence[int]) -> list[int]:
        raise asyncio.CancelledError

    batcher = MicroBatcher(run, max_batch=4, max_queue=9, model_name=name)
    task = asyncio.create_task(batcher.submit(1))
    done, _ = await asyncio.wait([task], timeout=1)
    assert done == {task}
    assert not task.cancelled(), "nobody cancelled the caller"
    assert task.exception()


async def test_batch_sizes_and_waits_are_counted(batcher: MicroBatcher[int, int], doubler: Doubler, name: str) -> None:
    tasks = await submitted(batcher, 1) + await submitted(batcher, 2, 3, 4)
    doubler.finish(2)
    await asyncio.gather(*tasks)

    def sample(metric: str) -> float | None:
        return REGISTRY.get_sample_value(metric, {"model_name": name})

    assert sample("dfmr_encode_batch_size_count") == 2
    assert sample("dfmr_encode_batch_size_sum") == 4
    assert sample("dfmr_encode_seconds_count") == 2
    assert sample("dfmr_encode_queue_seconds_count") == 4


async def test_the_queues_length_is_shown(batcher: MicroBatcher[int, int], doubler: Doubler, name: str) -> None:
    def waiting() -> float | None:
        return REGISTRY.get_sample_value("dfmr_encode_queue_pictures", {"model_name": name})

    assert waiting() == 0
    tasks = await submitted(batcher, 1)
    assert waiting() == 0
    tasks += await submitted(batcher, 2, 3)
    assert waiting() == 2
    doubler.finish(2)
    await asyncio.gather(*tasks)
    assert waiting() == 0


async def test_a_request_with_many_pictures_fills_half_of_a_batch_at_most(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    tasks = await submitted(batcher, 0)
    with one_owner(5):
        tasks += await submitted(batcher, 1, 2, 3, 4, 5)
    with one_owner(5):
        tasks += await submitted(batcher, 6)
    doubler.finish(4)
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12]
    assert doubler.calls == [[0], [1, 2, 6], [3, 4], [5]]


async def test_a_request_with_one_picture_waits_for_no_call_with_one_of_many(
    batcher: MicroBatcher[int, int], doubler: Doubler
) -> None:
    tasks = await submitted(batcher, 0)
    with one_owner(3):
        tasks += await submitted(batcher, 1, 2, 3)
    with one_owner(1):
        tasks += await submitted(batcher, 4)
    doubler.finish(4)
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]
    assert doubler.calls == [[0], [4], [1, 2], [3]]
