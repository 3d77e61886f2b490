"""Turns are given to one owner after another, and none is lost when a task that waits goes away."""

import asyncio

import pytest

from server.encoding.fair import FairQueue, FairSemaphore, one_owner


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_owners_take_turns_and_each_is_served_in_its_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in "abc":
        with one_owner():
            for number in range(1 + "abc".index(name)):
                queue.put(f"{name}{number}")
    assert len(queue) == 6
    assert [queue.take() for _ in range(6)] == ["a0", "b0", "c0", "b1", "c1", "c2"]
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.take()


def test_work_of_nobody_in_particular_is_served_as_it_comes() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(4):
        queue.put(number)
    queue.remove(2)
    assert [queue.take() for _ in range(3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="not in the queue"):
        queue.remove(3)


def test_one_owner_has_no_more_than_its_share_of_what_is_taken_at_once() -> None:
    queue: FairQueue[str] = FairQueue()
    for name, count in (("many", 7), ("few", 2)):
        with one_owner():
            for number in range(count):
                queue.put(f"{name}{number}")
    queue.put("nobody's0")
    queue.put("nobody's1")
    assert queue.take_some(4, share=3) == ["many0", "few0", "nobody's0", "nobody's1"]
    assert queue.take_some(4, share=3) == ["many1", "few1", "many2", "many3"]
    assert queue.take_some(4, share=3) == ["many4", "many5", "many6"]
    assert queue.take_some(4, share=3) == []


async def test_a_request_with_one_picture_is_let_in_before_the_rest_of_one_with_many() -> None:
    semaphore, order, may_leave = FairSemaphore(1), list[str](), asyncio.Semaphore(0)

    async def work(name: str) -> None:
        async with semaphore:
            order.append(name)
            await may_leave.acquire()

    async def request(name: str, pictures: int) -> None:
        with one_owner():
            await asyncio.gather(*(work(f"{name}{index}") for index in range(pictures)))

    many = asyncio.create_task(request("many", 4))
    await settle()
    one = asyncio.create_task(request("one", 1))
    await settle()
    for _ in range(5):
        may_leave.release()
        await settle()
    await asyncio.gather(many, one)
    assert order == ["many0", "many1", "one0", "many2", "many3"]


@pytest.mark.parametrize("leaves", ["while it waits", "as it is let in"])
async def test_who_goes_away_keeps_no_place(leaves: str) -> None:
    semaphore = FairSemaphore(1)
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
