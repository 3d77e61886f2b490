"""Usage from request logs: the JSON lines that ``--dfmr-request-log`` writes."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from server.report.usage import Group, Point, Usage

_POINTS = 60


class LogError(Exception):
    """A log cannot be read, or has nothing in it."""


def read(paths: Iterable[Path], since: float | None) -> Usage:
    """What was logged, from a time on, or all of it.

    Args:
        paths: logs, those of several API processes and rotated ones together.
        since: seconds since 1970.

    Raises:
        LogError: a file cannot be read, a line is not one of ours, or no request is left.
    """
    groups: dict[tuple[str, str], Group] = {}
    requests: list[tuple[float, float, float]] = []
    seconds: dict[str, list[float]] = defaultdict(list)
    first, last = float("inf"), float("-inf")
    for where, record in _records(paths):
        try:
            time, model, profile, kind = (record[name] for name in ("time", "model", "profile", "kind"))
            if since is not None and time < since:
                continue
            group = groups.setdefault((model, profile), Group(model, profile))
            if kind == "pair":
                _add_pair(group, record)
                continue
            original, kept = record["original_visual_tokens"], record["kept_visual_tokens"]
            group.pictures += record["images"]
            group.original += original
            group.kept += kept
            group.kv_bytes_saved += record["kv_bytes_saved"]
            group.compressed_requests += original > kept
            seconds[model].append(record["seconds"])
            requests.append((time, original, kept))
            first, last = min(first, time - record["seconds"]), max(last, time)
        except (KeyError, TypeError) as error:
            raise LogError(f"{where}: not a line of a request log: {error!r}") from error
    if not requests:
        raise LogError("the logs have no request in that time")
    return Usage(
        source="request log",
        start=first,
        end=last,
        groups=sorted(groups.values(), key=lambda g: (g.model, g.profile)),
        residency={model: sum(times) / len(times) for model, times in seconds.items()},
        residency_source="derived: mean time from a request's arrival to the end of its answer, which is longer than "
        "it holds KV cache",
        instance_hours=None,
        timeline=_timeline(requests, first, last),
    )


def _records(paths: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    yield f"{path}:{number}", json.loads(line)
        except (OSError, ValueError) as error:
            raise LogError(f"{path}: {error}") from error


def _add_pair(group: Group, record: dict[str, Any]) -> None:
    pairs = group.pairs
    pairs.count += 1
    pairs.ttft += record["ttft"]
    pairs.baseline_ttft += record["baseline_ttft"]
    if record["overlap"] is not None:
        pairs.compared += 1
        pairs.exact += bool(record["exact"])
        pairs.overlap += record["overlap"]


def _timeline(requests: Iterable[tuple[float, float, float]], first: float, last: float) -> list[Point]:
    width = max((last - first) / _POINTS, 1.0)
    original: dict[int, float] = defaultdict(float)
    kept: dict[int, float] = defaultdict(float)
    for time, made, left in requests:
        bucket = int((time - first) // width)
        original[bucket] += made
        kept[bucket] += left
    return [Point(first + (b + 1) * width, original[b], kept[b]) for b in range(max(original) + 1)]
