"""docs/metrics.md says of every collector what it is, and nothing of any other."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from deploy import generated, metrics_doc
from deploy.catalogue import Metric, own_metrics, upstream_metrics
from deploy.promql import problems
from server import metrics


def test_the_page_is_up_to_date() -> None:
    assert metrics_doc.main(["--check"]) == 0


def test_every_collector_has_name_type_labels_unit_meaning_and_example() -> None:
    page = metrics_doc.page()
    collectors = [value for name, value in vars(metrics).items() if name.isupper() and not name.startswith("_")]
    assert len(own_metrics()) == len(collectors) > 10
    for metric in own_metrics():
        assert f"| [`{metric.name}`](#{metric.name}) | {metric.kind} |" in page
        assert f"## {metric.name}\n\n{metric.help}.\n" in page
        assert metrics_doc.example(metric) in page
        assert metrics_doc.unit(metric)


def test_every_example_parses_and_names_its_metric() -> None:
    for metric in own_metrics():
        assert list(problems(metrics_doc.example(metric), metric.samples)) == []


def test_a_new_collector_is_found_without_being_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Counter("dfmr_new_bytes_total", "New", ("model_name",), registry=CollectorRegistry())
    monkeypatch.setattr(metrics, "NEW", new, raising=False)
    assert own_metrics()[-1] == Metric("dfmr_new_bytes_total", "counter", "New", ("model_name",))
    assert metrics_doc.unit(own_metrics()[-1]) == "bytes"
    assert metrics_doc.main(["--check"]) == 1


def test_drift_and_absence_are_told_and_writing_mends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    page = tmp_path / "docs" / "x.md"
    assert generated.write_or_check({page: "new"}, check=True) == ["docs/x.md is not what would be generated"]
    assert not page.exists()
    assert generated.write_or_check({page: "new"}, check=False) == []
    assert generated.write_or_check({page: "new"}, check=True) == []
    assert len(generated.write_or_check({page: "newer"}, check=True)) == 1


def test_upstream_names_are_read_from_the_installed_vllm() -> None:
    found = {metric.name: metric for metric in upstream_metrics()}
    assert found["vllm:time_to_first_token_seconds"].samples[0] == "vllm:time_to_first_token_seconds_bucket"
    assert found["vllm:prompt_tokens_total"].kind == "counter"
    assert found["vllm:kv_cache_usage_perc"].samples == ("vllm:kv_cache_usage_perc",)
    assert found["http_requests_total"].kind == "counter"
