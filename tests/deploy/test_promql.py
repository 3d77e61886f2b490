"""Queries are held to PromQL's grammar and to the metrics that exist."""

import pytest

from deploy.promql import divide, mean, ours, problems, quantile, rate, substituted, vllm

KNOWN = {"dfmr_score_bucket", "dfmr_images_total", "vllm:num_requests_running", "up"}


@pytest.mark.parametrize(
    "query",
    [
        "rate(dfmr_images_total[5m])",
        'sum by (le) (rate(dfmr_score_bucket{model_name=~".*"}[5m])) > 0 or vector(0)',
        '{__name__=~"vllm[:_]num_requests_running"}',
        "1 + 1",
    ],
)
def test_good_queries_pass(query: str) -> None:
    assert list(problems(query, KNOWN)) == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("rate(dfmr_images_total[5m]", "does not parse"),
        ("rate(dfmr_images_total)", "does not parse"),
        ("rate(dfmr_image_total[5m])", "no metric is called dfmr_image_total"),
        ("dfmr_score", "no metric is called dfmr_score"),
        ("sum(up) / sum(rate(dfmr_other_total[1m]))", "dfmr_other_total"),
        ("vllm:num_requests_running", "Prometheus 2 and 3"),
        ("vllm_num_requests_running", "Prometheus 2 and 3"),
        ('{__name__=~"vllm[:_]num_requests"}', "no metric matches"),
        ('{__name__=~"dfmr_.*"}', "only vLLM's"),
        ('{job="dfmr-server"}', "without a name"),
    ],
)
def test_bad_queries_are_named(query: str, says: str) -> None:
    assert any(says in problem for problem in problems(query, KNOWN))


def test_the_pieces_make_the_queries_that_they_say() -> None:
    scope = 'model_name=~"$model_name", instance=~"$instance"'
    assert rate(ours("x_total"), "model_name") == f"sum by (model_name) (rate(x_total{{{scope}}}[$__rate_interval]))"
    assert vllm("x") == f'{{__name__=~"vllm[:_]x", {scope}}}'
    assert divide("a", "b") == "a / (b > 0)"
    assert mean(ours("x{}")) == divide(rate(ours("x_sum")), rate(ours("x_count")))
    assert quantile(0.95, ours("x{}"), "model_name").startswith("histogram_quantile(0.95, sum by (le, model_name) (")


def test_variables_are_replaced_in_both_of_grafanas_spellings() -> None:
    assert substituted("rate(x[$__rate_interval]) * ${price}", {"__rate_interval": "5m", "price": "2"}) == (
        "rate(x[5m]) * 2"
    )
    with pytest.raises(KeyError):
        substituted("$nothing", {})
