"""Sends questions, several at a time, skips those that are answered, and says how far it is."""

import asyncio
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from evals import conditions, pictures
from evals.client import Endpoint, NotOfferedError, Reply, RequestFailedError
from evals.conditions import Change
from evals.items import Item
from evals.policies import Plan
from evals.store import Row, Store, described


@dataclasses.dataclass(frozen=True)
class Asking:
    """How questions are put.

    Attributes:
        suffix: follows every question, as ``Answer the question using a single word or phrase.`` for LLaVA-1.5.
        system: the system message, if any.
    """

    max_tokens: int = 32
    suffix: str = ""
    system: str | None = None
    concurrency: int = 8
    seed: int = 0


class Progress:
    """One line on a terminal, else one every ten seconds."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label, self._total = label, total
        self._stream = stream or sys.stderr
        self._done = self._errors = 0
        self._began = self._told = time.monotonic()

    def step(self, *, error: bool = False) -> None:
        self._done += 1
        self._errors += error
        now = time.monotonic()
        if now - self._told >= (0.2 if self._stream.isatty() else 10):
            self._tell(now)

    def finish(self, note: str = "") -> None:
        self._tell(time.monotonic(), note)
        if self._stream.isatty():
            print(file=self._stream)

    def _tell(self, now: float, note: str = "") -> None:
        self._told = now
        rate = self._done / max(now - self._began, 1e-9)
        left = (self._total - self._done) / rate if self._done else 0
        text = (
            f"{self._label}: {self._done}/{self._total}, {self._errors} errors, {rate:.1f}/s, {left:.0f} s left{note}"
        )
        terminal = self._stream.isatty()
        print(("\r\x1b[K" if terminal else "") + text, end="" if terminal else "\n", file=self._stream, flush=True)


async def run_policy(
    endpoint: Endpoint,
    policy: str,
    items: Sequence[Item],
    plans: Mapping[str, Plan],
    store: Store,
    asking: Asking,
    condition: Change | None = None,
) -> None:
    """Answer what is not answered yet, at most ``asking.concurrency`` at a time; failures become rows with an error."""
    name = None if condition is None else str(condition)
    missing = []
    for item in items:
        row = store.get(policy, item.id, name)
        if row is None or not row.answers(plans[item.id]):
            missing.append(item)
    label = policy if name is None else f"{policy} under {name}"
    progress = Progress(label, len(missing))
    queue = iter(missing)

    async def worker() -> None:
        for item in queue:
            row = await _answer(endpoint, policy, item, plans[item.id], asking, condition)
            store.add(row)
            progress.step(error=row.error is not None)

    await asyncio.gather(*(worker() for _ in range(max(1, min(asking.concurrency, len(missing))))))
    progress.finish(f", {len(items) - len(missing)} were there" if len(missing) < len(items) else "")


async def _answer(
    endpoint: Endpoint, policy: str, item: Item, plan: Plan, asking: Asking, condition: Change | None
) -> Row:
    error: str | None = None
    reply = Reply()
    try:
        urls = await asyncio.to_thread(uploads, item, [condition, plan.change], asking.seed)
        question = f"{item.question}{asking.suffix}"
        reply = await endpoint.ask(urls, question, plan.dfmr, max_tokens=asking.max_tokens, system=asking.system)
    except (NotOfferedError, RequestFailedError, OSError, ValueError) as failure:
        error = str(failure) or type(failure).__name__
    return Row(
        policy=policy,
        id=item.id,
        dfmr=plan.dfmr,
        change=described(plan),
        condition=None if condition is None else str(condition),
        pictures=len(item.pictures),
        error=error,
        **dataclasses.asdict(reply),
    )


def uploads(item: Item, changes: Sequence[Change | None], seed: int) -> list[str]:
    """An item's pictures as they are sent: unchanged bytes or URLs unless something changes them."""
    wanted = [change for change in changes if change is not None]
    if not wanted:
        return [pictures.upload_url(source) for source in item.pictures]
    urls = []
    for index, source in enumerate(item.pictures):
        picture = pictures.opened(source)
        for change in wanted:
            picture = conditions.apply(change, picture, f"{seed}/{item.id}/{index}")
        urls.append(pictures.data_url(picture))
    return urls
