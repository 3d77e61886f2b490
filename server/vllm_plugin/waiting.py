"""How vLLM's engine and its workers wait for each other where they share a few CPU cores with the model: asleep."""

import time

from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform

SPIN_SECONDS = 2e-3
"""After the last message the next one often comes at once, as between two decoding steps."""
LOOK_SECONDS = 2e-5
"""Between two looks for a message after that. Linux makes about 100 µs of it."""


class SleepingCondition(shm_broadcast.SpinCondition):
    """Waits for messages of a queue that was used within a second by sleeping between looks.

    vLLM gives its core away with ``sched_yield`` and looks again at once, which suits a machine with a GPU and cores to
    spare. Where the model runs on the cores, that takes one of them from the API process or from the model, and Linux
    6.18 starves processes beside it. To wait for vLLM's notifications alone won't do: some get lost, which is why vLLM
    itself looks every five seconds.
    """

    def wait(self, timeout_ms: int | None = None) -> None:
        if SPIN_SECONDS < time.monotonic() - self.last_read <= self.busy_loop_s:
            time.sleep(LOOK_SECONDS)
        else:
            super().wait(timeout_ms)


def sleep_between_looks() -> None:
    """Have the message queues of this process, if its model runs on a CPU, wait as `SleepingCondition` does."""
    if current_platform.is_cpu():
        shm_broadcast.SpinCondition = SleepingCondition
