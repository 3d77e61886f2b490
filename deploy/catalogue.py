"""Every metric that a scrape of the server returns: ours, vLLM's, and those of vLLM's HTTP instrumentation.

Ours are found by walking ``server/metrics.py``. Upstream's are read from the installed sources without importing them:
importing vLLM takes seconds, and it creates its collectors only with an engine.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from server import metrics

_SUFFIXES = {
    "counter": ("_total", "_created"),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "summary": ("_sum", "_count", "_created"),
}
_CONSTRUCTOR = re.compile(r"_?(counter|gauge|histogram|summary)(_cls)?", re.IGNORECASE)
_UPSTREAM = (("vllm", "v1/metrics/*.py", "vllm:"), ("prometheus_fastapi_instrumentator", "metrics.py", "http_"))


@dataclass(frozen=True)
class Metric:
    """One metric family.

    Attributes:
        name: what a scraper calls it: counters end in ``_total``, vLLM's names keep their colon.
        kind: counter, gauge, histogram or summary.
        help: what it means.
        labels: names of its labels; empty for upstream's, where they are not constants.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """Names of its samples: ``x_bucket``, ``x_sum``, ``x_count`` of a histogram ``x``."""
        family = self.name.removesuffix("_total") if self.kind == "counter" else self.name
        return tuple(family + suffix for suffix in _SUFFIXES[self.kind])


def own_metrics() -> list[Metric]:
    """Every collector of ``server/metrics.py``, in its order."""
    return [_described(value) for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]


def _described(collector: MetricWrapperBase) -> Metric:
    (family,) = collector.describe()
    name = family.name + ("_total" if family.type == "counter" else "")
    return Metric(name, family.type, family.documentation, tuple(collector._labelnames))


def upstream_metrics() -> list[Metric]:
    """Metrics that the installed vLLM and its HTTP instrumentation construct.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
    """
    found = []
    for package, pattern, prefix in _UPSTREAM:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{package} is not installed: its metric names cannot be checked")
        for path in sorted(Path(spec.submodule_search_locations[0]).glob(pattern)):
            found += [m for m in _constructed(ast.parse(path.read_text())) if m.name.startswith(prefix)]
    return found


def _constructed(tree: ast.AST) -> Iterator[Metric]:
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        function = call.func
        constructor = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        match = _CONSTRUCTOR.fullmatch(constructor)
        constants = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        if match is None or not isinstance(constants.get("name"), str):
            continue
        kind, name = match[1].lower(), str(constants["name"])
        if kind == "counter" and not name.endswith("_total"):
            name += "_total"
        yield Metric(name, kind, str(constants.get("documentation", "")))


def known_samples() -> set[str]:
    """Names of every sample that a scrape may return, and ``up``, which Prometheus adds."""
    return {sample for metric in (*own_metrics(), *upstream_metrics()) for sample in metric.samples} | {"up"}
