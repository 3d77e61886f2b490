"""Runs scenarios: policies take turns on servers that are up at the same time, one of them under load at a time."""

import asyncio
import contextlib
import itertools
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from loadtests import application, driver
from loadtests.driver import Load, Run
from loadtests.pictures import Gallery
from loadtests.results import MARK, Cell, cell
from loadtests.scenarios import Beside, Matrix, Scenario, Size, of
from loadtests.servers import Kind, Server
from loadtests.workload import Questions, make

ALONE = "alone"
SETTLE_SECONDS = 1.2
"""An engine and its workers look at their message queues without pause, or nearly so, for a second after the last
request, which takes the cores from whichever server is asked next."""
_OTHER = 1000
"""What the seed of a stream beside is apart from the measured stream's."""
_MOST = 8
"""Requests at a time when a server's capacity is measured."""
_CAPACITY_SECONDS = 4
"""How long that takes, about."""


class Runner:
    """Runs scenarios on servers that are up.

    Args:
        servers: by kind.
        folder: for pictures and logs.
        say: tells a person how far the run is.
    """

    def __init__(
        self, matrix: Matrix, size: Size, servers: Mapping[str, Server], folder: Path, say: Callable[[str], None]
    ) -> None:
        self._matrix = matrix
        self._size = size
        self._servers = servers
        self._folder = folder
        self._say = say
        self._serial = itertools.count()
        self._gallery = Gallery(seed=sum(map(ord, str(folder))) % 10**8)
        self._capacities: dict[tuple[int, int, str], float] = {}
        self._last: Kind | None = None

    def warm_up(self) -> None:
        """Have both servers answer a little of everything before anything is timed."""
        for policy in ("one-phase", "uncompressed", "fixed", "dfmr", "lowest"):
            if self._matrix.policies[policy].server in self._servers:
                for pictures in (0, 1, 4):
                    questions = Questions(2, pictures, ("photograph",), 32)
                    self.answer(questions, policy, 2, Load(concurrency=2))

    def run(self, scenario: Scenario) -> list[Cell]:
        """All cells of a scenario."""
        rounds = of(scenario.rounds, self._size)
        found: dict[tuple[str, str, float | None], list[Run]] = {}
        for number in range(rounds):
            # Every second round runs backwards, so that what drifts with time falls on all alike.
            policies = scenario.policies if number % 2 == 0 else scenario.policies[::-1]
            for policy in policies:
                if self._matrix.policies[policy].server not in self._servers:
                    continue
                self._turn_to(self._matrix.policies[policy].server)
                for variant, rate, run in self._variants(scenario, policy, number):
                    found.setdefault((policy, variant, rate), []).append(run)
                    self._say(f"{scenario.name} | round {number + 1}/{rounds} | {policy} {variant}{_told(run)}")
        shutil.rmtree(self._folder / "sent", ignore_errors=True)
        return [cell(scenario.name, policy, scenario.model, runs, v, r) for (policy, v, r), runs in found.items()]

    def _turn_to(self, server: Kind) -> None:
        """Wait for the other server's processes to go to sleep."""
        if server != self._last:
            time.sleep(SETTLE_SECONDS)
        self._last = server

    def _variants(self, scenario: Scenario, policy: str, number: int) -> Iterable[tuple[str, float | None, Run]]:
        if scenario.application is not None:
            yield "", None, self._application(scenario, policy)
            return
        first = scenario.policies[0]
        capacity = self._capacity(scenario.pictures, scenario.output, first) if scenario.rates else 0.0
        shares: list[float | None] = [*scenario.rates] or [None]
        for share in shares:
            rate = None if share is None else share * capacity
            # Bursts come where the seed puts them, so that one schedule is one sample: every round has its own.
            load = Load(scenario.concurrency, rate, seed=number)
            several = "" if share is None or len(scenario.rates) == 1 else MARK.format(share)
            if scenario.alone:
                yield ALONE, rate, self._main(scenario, policy, load, None)
            yield several, rate, self._main(scenario, policy, load, scenario.beside)

    def _main(self, scenario: Scenario, policy: str, load: Load, beside: Beside | None) -> Run:
        requests = of(scenario.requests, self._size)
        # The server has been idle while the other was under load: waking up is not what is measured.
        self.answer(Questions(1, min(1, scenario.pictures), scenario.kinds, 32), policy, 1, Load(concurrency=1))
        if scenario.dataset == "random-mm":
            chosen = self._matrix.policies[policy]
            unseen = replace(load, seed=next(self._serial))
            asked = (requests, scenario.pictures, scenario.text, scenario.output, chosen.body, unseen)
            return self._execute(driver.run_random(self._servers[chosen.server], *asked))[0]
        questions = Questions(requests, scenario.pictures, scenario.kinds, scenario.text, scenario.repeats)
        streams = []
        if beside is not None:
            other = Questions(of(beside.requests, self._size), beside.pictures, scenario.kinds, scenario.text)
            rate = beside.load * self._capacity(beside.pictures, beside.output, scenario.policies[0])
            streams.append(self._load(other, policy, beside.output, Load(rate=rate, seed=_OTHER + load.seed)))
        # The measured stream comes last: reading the other's pictures then delays none of its requests.
        return self._execute(*streams, self._load(questions, policy, scenario.output, load))[-1]

    def _load(self, questions: Questions, policy: str, output: int, load: Load) -> Awaitable[Run]:
        path = self._new() / "requests.jsonl"
        work = make(path, questions, policy, self._matrix, self._gallery)
        chosen = self._matrix.policies[policy]
        return driver.run(self._servers[chosen.server], work, chosen.body, output, load)

    def answer(self, questions: Questions, policy: str, output: int, load: Load) -> Run:
        """Have questions answered outside of any scenario."""
        return self._execute(self._load(questions, policy, output, load))[0]

    def _application(self, scenario: Scenario, policy: str) -> Run:
        assert scenario.application is not None
        folder = self._new()
        chosen = self._matrix.policies[policy]
        seconds = of(scenario.application.seconds, self._size)
        plan = application.Plan(seconds=seconds, users={"Application": scenario.application.users})
        return application.run(self._servers[chosen.server], chosen, plan, self._gallery, folder).run

    def _capacity(self, pictures: int, output: int, policy: str) -> float:
        """Requests a second of this kind that are answered under a policy, measured once."""
        kind = (pictures, output, policy)
        if kind not in self._capacities:

            def served(count: int) -> float:
                questions = Questions(count, pictures, ("photograph", "document", "chart"), 32)
                run = self.answer(questions, policy, output, Load(concurrency=_MOST))
                return len(run.requests) / run.seconds

            # The first answers after a rest come late: they wake the processes. They also tell how many are enough.
            few = served(3 if pictures > 1 else _MOST)
            self._capacities[kind] = served(max(6, round(_CAPACITY_SECONDS * few)))
            self._say(f"capacity, {policy}: {self._capacities[kind]:.2f} requests/s of {pictures} pictures")
        return self._capacities[kind]

    def _new(self) -> Path:
        folder = self._folder / "sent" / str(next(self._serial))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _execute(self, *streams: Awaitable[Run]) -> list[Run]:
        async def together() -> list[Run]:
            return list(await asyncio.gather(*streams))

        with (self._folder / "bench-serve.log").open("a") as log, contextlib.redirect_stdout(log):
            runs = asyncio.run(together())
        for run in runs:
            if all(request.error for request in run.requests):
                raise RuntimeError(f"every request failed: {run.requests[0].error}; see the logs in {self._folder}")
        return runs


def _told(run: Run) -> str:
    done = [r for r in run.requests if not r.error]
    failed = f", {len(run.requests) - len(done)} FAILED" if len(done) < len(run.requests) else ""
    middle = sorted(r.ttft for r in done)[len(done) // 2] if done else float("nan")
    return f": TTFT {1000 * middle:.0f} ms, {len(done) / run.seconds:.2f} requests/s{failed}"
