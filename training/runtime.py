"""What both phases share: processes, optimizer, schedule, checkpoints and the log."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

LONGEST_STEP_S = 30.0
"""A step that took longer counts as this long: the process was stopped, not training."""


OUTSIDE = ("class_embedding", "position_embedding", "embed_tokens", "head")
"""Parts of the names of parameters that are no matrices between hidden features: these are AdamW's."""


def _as_matrix(parameter: Tensor) -> Tensor:
    """A patch convolution's kernel (out, in, h, w) as the matrix that it is; others unchanged."""
    return parameter.flatten(1) if parameter.ndim == 4 else parameter


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the dtype of its inputs: on CPU in bf16, two to four times as fast as the fused kernel here.

    query, key, value: (pictures, heads, tokens, head width); attention_mask: additive, broadcast to the scores.
    """
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def launch(phase: Callable[..., None], processes: int, work: Path, *args: Any) -> None:
    """Run ``phase(rank, processes, work, *args)`` in that many single-threaded processes and wait for them."""
    store = work.resolve() / f"store-{time.time_ns()}"  # a relative path would be read as a URL's host
    start_processes(_enter, (phase, processes, work, store, args), nprocs=processes, start_method="spawn")


def _enter(
    rank: int, phase: Callable[..., None], processes: int, work: Path, store: Path, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    try:
        phase(rank, processes, work, *args)
    finally:
        dist.destroy_process_group()


def learning_rate(progress: float, warmup: float = 0.02, hold: float = 0.5, floor: float = 0.04) -> float:
    """Warm up, hold, then fall linearly to ``floor``; ``progress`` runs from 0 to 1."""
    if progress < warmup:
        return max(0.02, progress / warmup)
    return 1.0 if progress < hold else floor + (1 - floor) * max(0.0, 1 - progress) / (1 - hold)


class MixedOptimizer:
    """bf16 weights with float32 masters; Muon for the matrices inside, AdamW for everything else.

    Processes come together either at every step (``step``: gradients are averaged) or now and then (``local_step`` and
    ``average``: weights are averaged), which waits less where cores are shared. Both average a few numbers as well.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], muon_rate: float, adam_rate: float) -> None:
        pairs = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.weights = [parameter for _, parameter in pairs]
        self.masters = [_as_matrix(parameter.detach().float().clone()) for parameter in self.weights]
        self._sizes = [master.numel() for master in self.masters]
        inside = [parameter.ndim in (2, 4) and not any(out in name for out in OUTSIDE) for name, parameter in pairs]
        matrices = [master for master, matrix in zip(self.masters, inside, strict=True) if matrix]
        others = [master for master, matrix in zip(self.masters, inside, strict=True) if not matrix]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (
                torch.optim.Muon(matrices, lr=muon_rate, weight_decay=0.02, ns_steps=4, adjust_lr_fn="match_rms_adamw"),
                muon_rate,
            ),
            (torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0), adam_rate),
        ]

    def step(self, scale: float, numbers: list[float]) -> list[float]:
        """One update at ``scale`` times the learning rates; returns the numbers' means over the processes."""
        flat = torch.cat([self._gradients(), torch.tensor(numbers)])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        gradients, means = flat.split([flat.numel() - len(numbers), len(numbers)])
        self._update(gradients, scale)
        found: list[float] = means.tolist()
        return found

    def local_step(self, scale: float) -> None:
        """One update from this process's gradients alone; ``average`` brings the processes together again."""
        self._update(self._gradients(), scale)

    def average(self, numbers: list[float]) -> list[float]:
        """Give every process the mean of all weights; returns the numbers' means too."""
        flat = torch.cat([master.flatten() for master in self.masters] + [torch.tensor(numbers)])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        *parts, means = flat.split([*self._sizes, len(numbers)])
        with torch.no_grad():
            for weight, master, part in zip(self.weights, self.masters, parts, strict=True):
                master.copy_(part.view_as(master))
                weight.copy_(master.view_as(weight))
        found: list[float] = means.tolist()
        return found

    def _gradients(self) -> Tensor:
        """All gradients in one vector, float32."""
        every = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
        return torch.cat([gradient.float().flatten() for gradient in every])

    def _update(self, gradients: Tensor, scale: float) -> None:
        for weight in self.weights:
            weight.grad = None
        norm = gradients.norm()
        if not bool(norm.isfinite()):
            return
        gradients = gradients * min(1.0, 1.0 / (float(norm) + 1e-6))
        for master, gradient in zip(self.masters, gradients.split(self._sizes), strict=True):
            master.grad = gradient.view_as(master)
        for part, rate in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * scale
            part.step()
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.copy_(master.view_as(weight))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {"masters": self.masters, "parts": [part.state_dict() for part, _ in self.parts]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        with torch.no_grad():
            for master, weight, saved in zip(self.masters, self.weights, state["masters"], strict=True):
                master.copy_(saved)
                weight.copy_(saved.view_as(weight))
        for (part, _), saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


class Clock:
    """Training seconds so far, not counting times when the process stood still."""

    def __init__(self, elapsed: float = 0.0) -> None:
        self.elapsed, self._last = elapsed, time.monotonic()

    def tick(self) -> float:
        """Count the time since the last tick and return the sum."""
        now = time.monotonic()
        self.elapsed += min(LONGEST_STEP_S, now - self._last)
        self._last = now
        return self.elapsed


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves the old one or the new one, never half of one."""
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none yet."""
    if not path.exists():
        return None
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def report(work: Path, phase: str, step: int, seconds: float, numbers: dict[str, float]) -> None:
    """Print one line of progress and append it to ``log.csv``."""
    shown = " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
    print(f"[{phase}] step {step} {seconds / 60:.1f} min  {shown}", flush=True)
    log(work, phase, step, seconds, numbers)


def log(work: Path, phase: str, step: int, seconds: float, numbers: dict[str, float]) -> None:
    """Append to ``log.csv`` (long format: one row per number)."""
    path = work / "log.csv"
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["phase", "step", "seconds", "name", "value"])
        writer.writerows([phase, step, round(seconds, 1), name, round(value, 4)] for name, value in numbers.items())
