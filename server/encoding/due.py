"""Earliest due date first: what several requests wait for goes to the one that is due first, and small ones are due
sooner. One with many pictures then delays one with few by no more than what is under way, and is itself passed by those
that come soon after it, not by every one that comes."""

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

SLACK_SECONDS = 0.05
"""For each of its pictures a request is due so much later: one with twelve lets those with one pass that come within
0.55 s after it."""

Item = TypeVar("Item")


class _Owner(NamedTuple):
    due: float
    number: int
    pictures: int


class _Entry(NamedTuple, Generic[Item]):
    owner: _Owner
    number: int
    item: Item


_numbers = itertools.count()
_owner: ContextVar[_Owner | None] = ContextVar("owner", default=None)


def _due_in(pictures: int) -> _Owner:
    return _Owner(time.monotonic() + pictures * SLACK_SECONDS, next(_numbers), pictures)


@contextmanager
def one_owner(pictures: int) -> Iterator[None]:
    """What this task, and tasks that it starts, wait for within is waited for by one and the same owner.

    Args:
        pictures: that the owner has, encode's inputs: the more, the later it is due.
    """
    token = _owner.set(_due_in(pictures))
    try:
        yield
    finally:
        _owner.reset(token)


class DueQueue(Generic[Item]):
    """Owners by due date, and first in, first out for each owner."""

    def __init__(self) -> None:
        self._entries: list[_Entry[Item]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, item: Item) -> None:
        """Add an item of the current owner's; without one it is its own."""
        owner = _owner.get() or _due_in(1)
        heapq.heappush(self._entries, _Entry(owner, next(_numbers), item))

    def take(self) -> Item:
        """The next item of the owner that is due first.

        Raises:
            IndexError: there is none.
        """
        return heapq.heappop(self._entries).item

    def take_some(self, most: int, share: int) -> list[Item]:
        """Items that are done together, in order of their due dates.

        Owners with more pictures than the one that is due first are left out, as it would have to wait for theirs.

        Args:
            most: items.
            share: most items of one owner.
        """
        taken: Counter[_Owner] = Counter()
        items, left = list[Item](), list[_Entry[Item]]()
        largest = self._entries[0].owner.pictures if self._entries else 0
        while self._entries and len(items) < most:
            entry = heapq.heappop(self._entries)
            if entry.owner.pictures > largest or taken[entry.owner] == share:
                left.append(entry)
                continue
            taken[entry.owner] += 1
            items.append(entry.item)
        for entry in left:
            heapq.heappush(self._entries, entry)
        return items

    def remove(self, item: Item) -> None:
        """Take out an item.

        Raises:
            ValueError: it is not there.
        """
        index = next((index for index, entry in enumerate(self._entries) if entry.item is item), None)
        if index is None:
            raise ValueError("it is not in the queue")
        del self._entries[index]
        heapq.heapify(self._entries)


class DueSemaphore:
    """Lets a number of tasks in at a time, and of those that wait the owner that is due first.

    Args:
        count: tasks that are let in at a time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: DueQueue[asyncio.Future[None]] = DueQueue()

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
