"""Turns: what several requests wait for is given to one after another, so that one with many pictures delays none with
few by more than what is already under way."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

_owner: ContextVar[object] = ContextVar("owner", default=None)


@contextmanager
def one_owner() -> Iterator[None]:
    """What this task, and tasks that it starts, wait for within is waited for by one and the same owner."""
    token = _owner.set(object())
    try:
        yield
    finally:
        _owner.reset(token)


class FairQueue(Generic[Item]):
    """First in, first out for each owner, and owners in turn."""

    def __init__(self) -> None:
        self._owners: OrderedDict[object, deque[Item]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, item: Item) -> None:
        """Add an item of the current owner's; without one it is its own."""
        self._owners.setdefault(_owner.get() or object(), deque()).append(item)
        self._length += 1

    def take(self) -> Item:
        """The next item of the owner whose turn it is.

        Raises:
            IndexError: there is none.
        """
        if not self._owners:
            raise IndexError("take from an empty queue")
        first, items = self._owners.popitem(last=False)
        item = items.popleft()
        if items:
            self._owners[first] = items
        self._length -= 1
        return item

    def take_some(self, most: int, share: int) -> list[Item]:
        """Up to ``most`` items by turns, no more than ``share`` of one owner."""
        taken: list[Item] = []
        for _ in range(share):
            for _ in range(min(len(self._owners), most - len(taken))):
                taken.append(self.take())
        return taken

    def remove(self, item: Item) -> None:
        """Take out an item.

        Raises:
            ValueError: it is not there.
        """
        owner = next((owner for owner, items in self._owners.items() if item in items), None)
        if owner is None:
            raise ValueError("it is not in the queue")
        self._owners[owner].remove(item)
        if not self._owners[owner]:
            del self._owners[owner]
        self._length -= 1


class FairSemaphore:
    """Lets a number of tasks in at a time, and those that wait by the turns of their owners.

    Args:
        count: tasks that are let in at a time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.put(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._pass_on()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.take()
            if not turn.done():  # Those that were cancelled are left in the queue until their turn comes.
                turn.set_result(None)
                return
        self._free += 1
