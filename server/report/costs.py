"""From usage to figures: what was saved and what that is worth. Every figure says how it came to be.

A figure is *measured* (counted by the server), *derived* (computed from measured numbers, by the formula beside it) or
rests on something *assumed* (a number that the reader gave). What nothing is known about is left out, with the reason.
"""

from dataclasses import dataclass
from typing import Literal

from server.report.usage import Group, Usage

Kind = Literal["measured", "derived", "assumed"]

MIN_PAIRS = 20
"""Fewer pairs than this are shown, and not multiplied up to all traffic."""


@dataclass(frozen=True)
class Assumptions:
    """What only the reader knows.

    Attributes:
        gpu_hour: price of one GPU for an hour.
        gpus: GPUs of one instance.
        instances: instances that ran, where they were not counted.
        parameters: of the language model, active ones; None if not given.
        prefill_flops: FLOP/s that one GPU achieves in prefill; None if not given.
        currency: of the price.
    """

    gpu_hour: float
    gpus: float = 1.0
    instances: float = 1.0
    parameters: float | None = None
    prefill_flops: float | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: what it is.
        value: None where it cannot be had; ``note`` says why.
        unit: of the value; ``share`` is 0 to 1.
        kind: how it came to be.
        formula: in words.
        note: its assumptions.
    """

    name: str
    value: float | None
    unit: str
    kind: Kind
    formula: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """The figures of one model under one profile."""

    model: str
    profile: str
    figures: tuple[Figure, ...]

    def value(self, name: str) -> float | None:
        """A figure's value by its name.

        Raises:
            StopIteration: there is no such figure.
        """
        return next(figure.value for figure in self.figures if figure.name == name)


@dataclass(frozen=True)
class Report:
    """All of it: one result, many renderings."""

    usage: Usage
    assumptions: Assumptions
    sections: tuple[Section, ...]
    ownership: tuple[Figure, ...]


SAVED_TOKENS = "Visual tokens saved"
KV_HOURS = "KV cache not held"
GPU_SECONDS = "Prefill time saved"
MONEY = "Money saved"
BEFORE = "Cost without compression"
AFTER = "Cost with compression"


def report(usage: Usage, assumptions: Assumptions) -> Report:
    """The figures of every model and profile, and the cost of ownership before and after."""
    sections = tuple(_section(group, usage, assumptions) for group in usage.groups)
    return Report(usage, assumptions, sections, tuple(_ownership(usage, sections, assumptions)))


def _section(group: Group, usage: Usage, assumptions: Assumptions) -> Section:
    seconds = _prefill_seconds(group, assumptions)
    return Section(
        group.model,
        group.profile,
        (*_tokens(group), *_kv(group, usage), *_pairs(group), seconds, _money(seconds, assumptions)),
    )


def _tokens(group: Group) -> list[Figure]:
    return [
        Figure("Pictures", group.pictures, "pictures", "measured", "accepted pictures, counted"),
        Figure("Visual tokens of the encoder", group.original, "tokens", "measured", "counted before pooling"),
        Figure("Visual tokens kept", group.kept, "tokens", "measured", "counted after pooling"),
        Figure(SAVED_TOKENS, group.saved, "tokens", "measured", "tokens of the encoder - tokens kept"),
        Figure(
            "Share saved",
            group.saved / group.original if group.original else None,
            "share",
            "measured",
            "tokens saved / tokens of the encoder",
            "" if group.original else "no pictures in this time",
        ),
    ]


def _kv(group: Group, usage: Usage) -> list[Figure]:
    residency = usage.residency.get(group.model)
    hours = None if residency is None else group.kv_bytes_saved / 1e9 * residency / 3600
    return [
        Figure(
            "KV cache not written",
            group.kv_bytes_saved / 1e9,
            "GB",
            "derived",
            "tokens saved x bytes per token of the engine's KV cache layout (layers x key and value x heads x width x "
            "bytes per number)",
        ),
        Figure(
            KV_HOURS,
            hours,
            "GB h",
            "derived",
            "KV cache not written x mean seconds that a request holds its cache / 3600",
            f"Requests that save much are held as long as others. Mean time held: "
            f"{'not known' if residency is None else f'{residency:.3g} s'} ({usage.residency_source}).",
        ),
    ]


def _pairs(group: Group) -> list[Figure]:
    pairs = group.pairs
    if not pairs.count:
        missing = "No pairs in this time: start the server with --dfmr-baseline-share."
        return [
            Figure("Time to first token saved", None, "share", "measured", "1 - compressed / uncompressed", missing)
        ]
    sample = (
        f"{pairs.count:.0f} requests, each run with compression and without on an engine without other work; from "
        "scheduling to the first token, no cache being read"
    )
    figures = [
        Figure("Time to first token, compressed", pairs.ttft / pairs.count, "s", "measured", "mean of pairs", sample),
        Figure(
            "Time to first token, uncompressed",
            pairs.baseline_ttft / pairs.count,
            "s",
            "measured",
            "mean of pairs",
            sample,
        ),
        Figure(
            "Time to first token saved",
            1 - pairs.ttft / pairs.baseline_ttft,
            "share",
            "measured",
            "1 - compressed / uncompressed, over the same pairs",
            sample,
        ),
    ]
    if pairs.compared:
        compared = f"{pairs.compared:.0f} pairs at temperature 0"
        figures += [
            Figure(
                "Same answer",
                pairs.exact / pairs.compared,
                "share",
                "measured",
                "pairs with the same tokens / pairs",
                compared,
            ),
            Figure(
                "Token overlap of answers",
                pairs.overlap / pairs.compared,
                "share",
                "measured",
                "mean F1 over tokens",
                compared,
            ),
        ]
    return figures


def _prefill_seconds(group: Group, assumptions: Assumptions) -> Figure:
    unit = "GPU s"
    if group.pairs.count >= MIN_PAIRS:
        return Figure(
            GPU_SECONDS,
            group.pairs.saved * group.compressed_requests * assumptions.gpus,
            unit,
            "derived",
            "mean (uncompressed - compressed) of the pairs x compressed requests x GPUs per instance",
            f"The {group.pairs.count:.0f} pairs stand for all {group.compressed_requests:.0f} compressed requests, "
            "which were computed as the pairs were, each prompt by itself: prompts that share a batch or are found in "
            "the prefix cache save less.",
        )
    if assumptions.parameters is not None and assumptions.prefill_flops is not None:
        return Figure(
            GPU_SECONDS,
            group.saved * 2 * assumptions.parameters / assumptions.prefill_flops,
            unit,
            "assumed",
            "tokens saved x 2 x parameters / achieved FLOP/s",
            f"{assumptions.parameters:.3g} parameters and {assumptions.prefill_flops:.3g} FLOP/s were given, not "
            "measured. Linear layers only: attention is left out, which understates long prompts; prompts found in "
            "the prefix cache are counted as computed.",
        )
    return Figure(
        GPU_SECONDS,
        None,
        unit,
        "derived",
        "mean time saved by a pair x compressed requests",
        f"Not known: it takes {MIN_PAIRS} pairs (--dfmr-baseline-share; there are {group.pairs.count:.0f}), or "
        "--parameters-billion and --prefill-tflops.",
    )


def _money(seconds: Figure, assumptions: Assumptions) -> Figure:
    return Figure(
        MONEY,
        None if seconds.value is None else seconds.value / 3600 * assumptions.gpu_hour,
        assumptions.currency,
        "assumed" if seconds.kind == "assumed" else "derived",
        "prefill time saved / 3600 x price of a GPU hour",
        f"A GPU hour costs {assumptions.gpu_hour:g} {assumptions.currency} (given). Real only if the time is given up "
        "or used for other work. Memory that was saved is not priced.",
    )


def _ownership(usage: Usage, sections: tuple[Section, ...], assumptions: Assumptions) -> list[Figure]:
    counted = usage.instance_hours is not None
    hours = sum((usage.instance_hours or {}).values()) if counted else usage.hours * assumptions.instances
    gpu_hours = hours * assumptions.gpus
    known = [value for section in sections if (value := section.value(GPU_SECONDS)) is not None]
    missing = (
        "" if len(known) == len(sections) else "Models and profiles whose prefill time saved is not known count as 0. "
    )
    saved_hours = sum(known) / 3600 if known else None
    measuring = sum(g.pairs.ttft + g.pairs.baseline_ttft for g in usage.groups) * assumptions.gpus / 3600
    after = gpu_hours * assumptions.gpu_hour
    before = None if saved_hours is None else after + (saved_hours - measuring) * assumptions.gpu_hour
    kind: Kind = (
        "assumed" if any(f.kind == "assumed" for s in sections for f in s.figures) or not counted else "derived"
    )
    return [
        Figure(
            "GPU hours",
            gpu_hours,
            "GPU h",
            "derived" if counted else "assumed",
            "hours that instances ran x GPUs per instance",
            "Instances were counted by their scrapes."
            if counted
            else f"{assumptions.instances:g} instances (given) ran from the first request to the last.",
        ),
        Figure(
            AFTER,
            after,
            assumptions.currency,
            "derived" if counted else "assumed",
            "GPU hours x price of a GPU hour",
            f"A GPU hour costs {assumptions.gpu_hour:g} {assumptions.currency} (given), with or without power, hosts "
            "and staff.",
        ),
        Figure(
            "GPU hours saved",
            saved_hours,
            "GPU h",
            kind,
            "prefill time saved / 3600, over all models and profiles",
            missing or "As in the sections above.",
        ),
        Figure(
            "GPU hours spent on measuring",
            measuring,
            "GPU h",
            "measured",
            "time to first token of both runs of every pair x GPUs per instance / 3600",
            "Their answers' further tokens are not in it.",
        ),
        Figure(
            BEFORE,
            before,
            assumptions.currency,
            kind,
            "cost with compression + (GPU hours saved - GPU hours spent on measuring) x price of a GPU hour",
            f"{missing}The same traffic at the same utilisation. Only prefill is counted: a smaller KV cache also lets "
            "more requests run at once, and makes each decoding step cheaper; neither is in this figure. The time of "
            "the reduction itself is not subtracted (architecture.md has its measurement).",
        ),
        Figure(
            "Share of cost saved",
            None if before is None or before <= 0 else 1 - after / before,
            "share",
            kind,
            "1 - cost with compression / cost without",
        ),
    ]
