"""What is due first comes first, and no place is lost when a task that waits goes away."""

import asyncio

import pytest

from server.encoding import due
from server.encoding.due import SLACK_SECONDS, DueQueue, DueSemaphore, one_owner


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `due` reads the time from."""
    now = [100.0]
    monkeypatch.setattr(due.time, "monotonic", lambda: now[0])
    return now


def test_of_requests_that_came_together_the_smaller_are_served_first_and_each_in_its_order() -> None:
    queue: DueQueue[str] = DueQueue()
    for name, pictures in (("a", 3), ("b", 1), ("c", 2)):
        with one_owner(pictures):
            for number in range(pictures):
                queue.put(f"{name}{number}")
    assert len(queue) == 6
    assert [queue.take() for _ in range(6)] == ["b0", "c0", "c1", "a0", "a1", "a2"]
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.take()


def test_a_large_request_is_passed_only_by_those_that_come_soon_after_it(clock: list[float]) -> None:
    queue: DueQueue[str] = DueQueue()

    def put(name: str, pictures: int) -> None:
        with one_owner(pictures):
            queue.put(name)

    put("twelve", 12)
    clock[0] += 10 * SLACK_SECONDS
    put("soon after", 1)
    clock[0] += 2 * SLACK_SECONDS
    put("later", 1)
    assert [queue.take() for _ in range(3)] == ["soon after", "twelve", "later"]


def test_work_of_nobody_in_particular_is_served_as_it_comes() -> None:
    queue: DueQueue[int] = DueQueue()
    for number in range(4):
        queue.put(number)
    queue.remove(2)
    assert [queue.take() for _ in range(3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="not in the queue"):
        queue.remove(3)


def test_what_is_taken_at_once_holds_no_larger_requests_than_the_first_and_a_share_of_each() -> None:
    queue: DueQueue[str] = DueQueue()
    for name, count in (("many", 7), ("few", 2), ("as few", 2)):
        with one_owner(count):
            for number in range(count):
                queue.put(f"{name}{number}")
    queue.put("nobody's0")
    queue.put("nobody's1")
    assert queue.take_some(4, share=3) == ["nobody's0", "nobody's1"]
    assert queue.take_some(3, share=3) == ["few0", "few1", "as few0"]
    assert queue.take_some(4, share=3) == ["as few1"]
    assert queue.take_some(4, share=3) == ["many0", "many1", "many2"]
    assert queue.take_some(4, share=3) == ["many3", "many4", "many5"]
    assert len(queue) == 1
    assert queue.take_some(4, share=3) == ["many6"]
    assert queue.take_some(4, share=3) == []


def test_a_large_request_that_is_due_takes_smaller_ones_along(clock: list[float]) -> None:
    queue: DueQueue[str] = DueQueue()
    with one_owner(12):
        for number in range(12):
            queue.put(f"twelve{number}")
    clock[0] += 12 * SLACK_SECONDS
    queue.put("one")
    assert queue.take_some(8, share=4) == ["twelve0", "twelve1", "twelve2", "twelve3", "one"]


async def test_a_request_with_one_picture_is_let_in_before_the_rest_of_one_with_many() -> None:
    semaphore, order, may_leave = DueSemaphore(1), list[str](), asyncio.Semaphore(0)

    async def work(name: str) -> None:
        async with semaphore:
            order.append(name)
            await may_leave.acquire()

    async def request(name: str, pictures: int) -> None:
        with one_owner(pictures):
            await asyncio.gather(*(work(f"{name}{index}") for index in range(pictures)))

    many = asyncio.create_task(request("many", 4))
    await settle()
    one = asyncio.create_task(request("one", 1))
    await settle()
    for _ in range(5):
        may_leave.release()
        await settle()
    await asyncio.gather(many, one)
    assert order == ["many0", "one0", "many1", "many2", "many3"]


@pytest.mark.parametrize("leaves", ["while it waits", "as it is let in"])
async def test_who_goes_away_keeps_no_place(leaves: str) -> None:
    semaphore = DueSemaphore(1)
    inside = asyncio.Event()
    leave = asyncio.Event()

    async def hold() -> None:
        async with semaphore:
            inside.set()
            await leave.wait()

    async def pass_through() -> None:
        async with semaphore:
            pass

    first = asyncio.create_task(hold())
    await inside.wait()
    gone = asyncio.create_task(pass_through())
    after = asyncio.create_task(pass_through())
    await settle()
    if leaves == "while it waits":
        gone.cancel()
        leave.set()
    else:
        leave.set()
        await asyncio.sleep(0)  # the holder leaves and the place is passed on, but not taken up yet
        gone.cancel()
    await asyncio.wait_for(asyncio.gather(first, after), 5)
    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.wait_for(pass_through(), 5)
