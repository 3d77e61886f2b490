"""PromQL: the pieces that panels are made of, and the check that a query parses and names metrics that exist."""

import re
from collections.abc import Collection, Iterator, Mapping

import promql_parser

INSTANCE = 'instance=~"$instance"'
SCOPE = f'model_name=~"$model_name", {INSTANCE}'
WINDOW = "$__rate_interval"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_UPSTREAM_PREFIX = "vllm[:_]"
"""Prometheus 2 scrapes vLLM's names as ``vllm_x``, Prometheus 3 as ``vllm:x``: prometheus_client rewrites the colon for
scrapers that do not ask for UTF-8 names. Queries match both."""


def ours(sample: str, *matchers: str) -> str:
    """A selector of one of our samples, within the models and instances chosen on the board."""
    return f"{sample}{{{', '.join((SCOPE, *matchers))}}}"


def vllm(sample: str, *matchers: str) -> str:
    """A selector of one of vLLM's samples, named without its ``vllm:``."""
    return f'{{__name__=~"{_UPSTREAM_PREFIX}{sample}", {", ".join((SCOPE, *matchers))}}}'


def http(sample: str, *matchers: str) -> str:
    """A selector of a sample of the HTTP layer, which knows instances but no models."""
    return f"{sample}{{{', '.join((INSTANCE, *matchers))}}}"


def summed(expression: str, by: str = "") -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def rate(selector: str, by: str = "", window: str = WINDOW) -> str:
    """Per second, summed."""
    return summed(f"rate({selector}[{window}])", by)


def increase(selector: str, by: str = "") -> str:
    """Over the time range of the board, summed."""
    return summed(f"increase({selector}[$__range])", by)


def divide(numerator: str, denominator: str) -> str:
    """A quotient that is absent, not NaN, while nothing happens."""
    return f"{numerator} / ({denominator} > 0)"


def mean(select: str, by: str = "") -> str:
    """Mean of a histogram; ``select`` is a selector of it with ``{}`` where the sample's suffix stands."""
    return divide(rate(select.replace("{}", "_sum"), by), rate(select.replace("{}", "_count"), by))


def quantile(q: float, select: str, by: str = "") -> str:
    """A quantile of a histogram; ``select`` as in `mean`."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, {rate(select.replace('{}', '_bucket'), labels)})"


def substituted(query: str, values: Mapping[str, str]) -> str:
    """A query with Grafana's variables, as ``$x`` or ``${x}``, replaced.

    Raises:
        KeyError: a variable has no value.
    """
    return _VARIABLE.sub(lambda match: values[match[1] or match[2]], query)


def problems(query: str, known: Collection[str]) -> Iterator[str]:
    """What is wrong with a query whose variables are substituted: its syntax, or the metrics that it names.

    Args:
        query: PromQL.
        known: names of the samples that exist, vLLM's with their colon.
    """
    try:
        tree = promql_parser.parse(query)
    except ValueError as error:
        yield f"does not parse: {error}"
        return
    selectors: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)

    promql_parser.walk(tree, visit)
    for selector in selectors:
        yield from _unknown(selector, known)


def _unknown(selector: promql_parser.VectorSelector, known: Collection[str]) -> Iterator[str]:
    named = [m for m in selector.matchers.matchers if m.name == "__name__"]
    name = selector.name
    if name is None and named:
        pattern = re.compile(named[0].value)
        if not any(pattern.fullmatch(sample) for sample in known):
            yield f"no metric matches {pattern.pattern}"
        if not pattern.pattern.startswith(_UPSTREAM_PREFIX):
            yield f"{pattern.pattern}: only vLLM's metrics are selected by pattern"
    elif name is None:
        yield f"a selector without a name: {selector}"
    elif name.startswith("vllm"):
        yield f'{name}: write {{__name__=~"{_UPSTREAM_PREFIX}..."}}, which holds for Prometheus 2 and 3'
    elif name not in known:
        yield f"no metric is called {name}"
