"""How vLLM's engine and its workers wait for each other where they share a few CPU cores with the model: asleep."""

import time

from vllm.platforms import current_platform

LOOK_SECONDS = 1e-4
"""Between two looks for a message. Linux makes about 150 µs of it."""


def sleep_between_looks() -> None:
    """Have readers of vLLM's message queues sleep, on a CPU, between looks at a queue that was used within a second.

    vLLM gives its core away with ``sched_yield`` and looks again at once, which suits a machine with a GPU and cores to
    spare. Where the model runs on the cores, that takes one of them from the API process or from the model, and Linux
    6.18 starves processes beside it. To wait for vLLM's notifications alone won't do: some get lost, which is why vLLM
    itself looks every five seconds.
    """
    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = _sleep


def _sleep() -> None:
    time.sleep(LOOK_SECONDS)
