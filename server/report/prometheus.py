"""Usage from a Prometheus that scraped the servers."""

import math
from collections.abc import Iterable
from typing import Any

import httpx

from server.report.usage import Group, Pairs, Point, Usage

_TIMEOUT_SECONDS = 120.0
_POINTS = 60
_LOOKS = 2000
"""How often the number of running instances is looked at, over the time range: fine enough for a trial of minutes."""
_MIN_STEP_SECONDS = 15
_BY = "model_name, profile"
_RESIDENCY = "vllm[:_]request_inference_time_seconds"


class PrometheusError(Exception):
    """Prometheus could not be asked, or did not answer as it should."""


class Prometheus:
    """The two queries of its HTTP API that the report needs.

    Args:
        url: where Prometheus listens, as ``http://prometheus:9090``.
        headers: sent with every query, for a Prometheus that asks for authorisation.
    """

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self._client = httpx.Client(base_url=url.rstrip("/"), timeout=_TIMEOUT_SECONDS, headers=headers)

    def instant(self, query: str, at: float) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series that a query gives at a time; those that are not numbers are left out."""
        result = self._get("query", {"query": query, "time": at})
        values = [(series["metric"], float(series["value"][1])) for series in result]
        return [(labels, value) for labels, value in values if math.isfinite(value)]

    def range(self, query: str, start: float, end: float, step: float) -> list[tuple[float, float]]:
        """Times and values of a query that gives one series; empty where it gives none."""
        result = self._get("query_range", {"query": query, "start": start, "end": end, "step": step})
        return [(float(time), float(value)) for series in result[:1] for time, value in series["values"]]

    def _get(self, path: str, params: dict[str, str | float]) -> list[dict[str, Any]]:
        try:
            reply = self._client.get(f"/api/v1/{path}", params=params)
            body = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise PrometheusError(f"{self._client.base_url}: {error}") from error
        if reply.status_code != httpx.codes.OK or body.get("status") != "success":
            raise PrometheusError(f"{self._client.base_url}: {body.get('error', reply.status_code)}: {params['query']}")
        result: list[dict[str, Any]] = body["data"]["result"]
        return result


def read(prometheus: Prometheus, end: float, seconds: int) -> Usage:
    """What the servers counted in the ``seconds`` before ``end``.

    Raises:
        PrometheusError: it cannot be asked, or has no counters of ours in that time.
    """
    window = f"{seconds}s"
    groups: dict[tuple[str, str], Group] = {}

    def each(query: str) -> Iterable[tuple[Group, float]]:
        for labels, value in prometheus.instant(query, end):
            model, profile = labels.get("model_name", ""), labels.get("profile", "")
            yield groups.setdefault((model, profile), Group(model, profile)), value

    def increase(metric: str) -> str:
        return f"sum by ({_BY}) (increase({metric}[{window}]))"

    for group, value in each(increase('dfmr_visual_tokens_total{stage="original"}')):
        group.original = value
    for group, value in each(increase('dfmr_visual_tokens_total{stage="kept"}')):
        group.kept = value
    if not groups:
        raise PrometheusError(
            "this Prometheus has no dfmr_visual_tokens_total in that time: does it scrape the server?"
        )
    for group, value in each(increase("dfmr_images_total")):
        group.pictures = value
    for group, value in each(increase("dfmr_kv_bytes_saved_total")):
        group.kv_bytes_saved = value
    for group, value in each(increase("dfmr_compressed_requests_total")):
        group.compressed_requests = value
    for name, metric in _PAIR_FIELDS.items():
        for group, value in each(increase(metric)):
            setattr(group.pairs, name, value)
    return Usage(
        source=f"Prometheus: increase of counters over {window}, which extrapolates to both ends",
        start=end - seconds,
        end=end,
        groups=sorted(groups.values(), key=lambda g: (g.model, g.profile)),
        residency=_residency(prometheus, end, window),
        residency_source="measured: mean of vLLM's request_inference_time_seconds, from scheduling to the last token, "
        "over all requests of the model",
        instance_hours=_instance_hours(prometheus, end, seconds),
        timeline=_timeline(prometheus, end, seconds),
    )


_PAIR_FIELDS = {
    "count": "dfmr_baseline_ttft_seconds_count",
    "ttft": "dfmr_ttft_seconds_sum",
    "baseline_ttft": "dfmr_baseline_ttft_seconds_sum",
    "compared": "dfmr_baseline_agreement_count",
    "exact": 'dfmr_baseline_answers_total{match="exact"}',
    "overlap": "dfmr_baseline_agreement_sum",
}
assert set(_PAIR_FIELDS) == set(Pairs.__dataclass_fields__)


def _residency(prometheus: Prometheus, end: float, window: str) -> dict[str, float]:
    def total(suffix: str) -> str:
        return f'sum by (model_name) (increase({{__name__=~"{_RESIDENCY}_{suffix}"}}[{window}]))'

    means = prometheus.instant(f"{total('sum')} / ({total('count')} > 0)", end)
    return {labels["model_name"]: value for labels, value in means}


def _instance_hours(prometheus: Prometheus, end: float, seconds: int) -> dict[str, float]:
    step = max(1, seconds // _LOOKS)
    running = f"sum_over_time(count by (model_name) (dfmr_cache_bytes)[{seconds}s:{step}s])"
    return {labels["model_name"]: value * step / 3600 for labels, value in prometheus.instant(running, end)}


def _timeline(prometheus: Prometheus, end: float, seconds: int) -> list[Point]:
    step = _step(seconds)
    stages = [
        dict(
            prometheus.range(
                f'sum(increase(dfmr_visual_tokens_total{{stage="{stage}"}}[{step}s]))', end - seconds + step, end, step
            )
        )
        for stage in ("original", "kept")
    ]
    original, kept = stages
    return [Point(time, original[time], kept[time]) for time in sorted(original.keys() & kept.keys())]


def _step(seconds: int) -> int:
    return max(_MIN_STEP_SECONDS, seconds // _POINTS)
