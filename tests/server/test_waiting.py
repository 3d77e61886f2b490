"""On a CPU a reader of vLLM's message queues spins for a moment, then sleeps, and at last waits to be notified."""

import time
from collections.abc import Iterator

import pytest
import zmq
from vllm.distributed.device_communicators import shm_broadcast
from vllm.utils.network_utils import get_open_zmq_ipc_path

from server.vllm_plugin import waiting
from server.vllm_plugin.waiting import SPIN_SECONDS, SleepingCondition, sleep_between_looks


@pytest.fixture
def reader() -> Iterator[SleepingCondition]:
    context = zmq.Context()
    yield SleepingCondition(is_reader=True, context=context, notify_address=get_open_zmq_ipc_path())
    context.destroy(linger=0)


@pytest.mark.parametrize(
    ("idle", "expected"), [(0.0, ["yield"]), (5 * SPIN_SECONDS, ["sleep"]), (60.0, [])], ids=["at once", "soon", "idle"]
)
def test_how_a_reader_waits(
    reader: SleepingCondition, monkeypatch: pytest.MonkeyPatch, idle: float, expected: list[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(shm_broadcast, "sched_yield", lambda: done.append("yield"))
    monkeypatch.setattr(waiting.time, "sleep", lambda _: done.append("sleep"))
    now = time.monotonic()
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now)
    reader.last_read = now - idle
    reader.wait(timeout_ms=1)
    assert done == expected


def test_queues_of_a_process_whose_model_runs_on_a_cpu_wait_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_broadcast, "SpinCondition", None)
    monkeypatch.setattr(waiting.current_platform, "is_cpu", lambda: False)
    sleep_between_looks()
    assert shm_broadcast.SpinCondition is None
    monkeypatch.setattr(waiting.current_platform, "is_cpu", lambda: True)
    sleep_between_looks()
    assert shm_broadcast.SpinCondition is SleepingCondition
