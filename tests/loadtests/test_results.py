"""Figures, targets and the page are made of runs alone."""

import csv
import json
from pathlib import Path

import pytest

from evals.results import write_json
from loadtests import report, targets
from loadtests.driver import Request, Run
from loadtests.results import Results, cell, write_csv
from loadtests.servers import Samples


def run(ttft: float, *, seconds: float = 1.0, seen: float | None = None, gap: float = 0.01, encode: float = 0.0) -> Run:
    requests = [Request(ttft, (gap, gap), 600, 3)] * 3
    if seen is not None:
        requests += [Request(seen, (gap, gap), 600, 3, seen=True)] * 2
    after = Samples.parse(
        f'dfmr_encode_seconds_sum{{model_name="m"}} {encode}\n'
        'dfmr_visual_tokens_total{model_name="m",stage="original"} 1000\n'
        'dfmr_visual_tokens_total{model_name="m",stage="kept"} 240\n'
        'dfmr_cache_hits_total{model_name="m"} 4\ndfmr_cache_misses_total{model_name="m"} 1\n'
    )
    return Run(tuple(requests), seconds, len(requests), Samples(), after, 7)


def results() -> Results:
    cells = [
        cell("one picture", "one-phase", "bench", [run(1.0), run(1.0), run(1.0)]),
        cell("one picture", "uncompressed", "bench", [run(1.01), run(5.0), run(1.02)]),
        cell("four pictures", "one-phase", "bench", [run(2.0)]),
        cell("four pictures", "dfmr", "bench", [run(0.6, encode=0.3)]),
        cell("four pictures", "text-only", "bench", [run(0.45)]),
        cell("four pictures, saturated", "one-phase", "bench", [run(1.0, seconds=4)]),
        cell("four pictures, saturated", "dfmr", "bench", [run(1.0, seconds=1)]),
        cell("four pictures, four of five seen", "dfmr", "bench", [run(1.0, seen=0.1)]),
        cell("rising load", "one-phase", "bench", [run(9.0)], "1 x capacity", 2.0),
        cell("rising load", "dfmr", "bench", [run(1.0)], "1 x capacity", 2.0),
    ]
    found = Results(run={"model": "small", "encoder_share": 0.05}, cells=cells, context={"one-phase": 7, "fixed": 28})
    found.count_goodput()
    found.targets = targets.check(found)
    return found


def measured(name: str) -> tuple[float | None, bool]:
    (target,) = [t for t in results().targets if t.name.startswith(name)]
    return target.measured, target.passed


def test_a_ratio_is_the_median_of_paired_rounds_not_of_pooled_requests() -> None:
    assert measured("two-phase overhead: TTFT") == (1.02, True)


def test_the_limit_is_encoding_and_the_prefill_of_as_much_text() -> None:
    assert measured("4 pictures at 25 %: TTFT p50 over the limit") == (
        pytest.approx(0.6 / (0.1 + 0.45), abs=1e-4),
        True,
    )


def test_throughput_counts_answers_over_time() -> None:
    assert measured("4 pictures at 25 %: requests/s") == (4.0, True)


def test_repeated_pictures_are_compared_with_unseen_ones_of_the_same_round() -> None:
    assert measured("repeated pictures: TTFT") == (0.1, True)
    assert measured("repeated pictures: share") == (0.8, True)


def test_what_was_not_measured_is_short() -> None:
    assert measured("API process: requests/s") == (None, False)
    assert measured("memory: growth") == (None, False)


def test_goodput_counts_answers_within_twice_the_idle_baseline() -> None:
    found = results()
    assert found.slo is not None
    assert found.slo.ttft == 4.0
    assert [c.goodput for c in found.cells if c.scenario == "rising load"] == [0.0, 3.0]


def test_failed_requests_count_as_failed_and_not_as_fast() -> None:
    bad = Run((Request(0.0, (), 0, 0, error="503"), Request(1.0, (), 5, 1)), 2.0, 1, Samples(), Samples(), 0)
    found = cell("x", "uncompressed", "bench", [bad])
    assert (found.requests, found.failed, found.ttft.p50, found.requests_per_second) == (2, 1, 1.0, 0.5)


def test_json_csv_and_page_are_of_the_same_results(tmp_path: Path) -> None:
    found = results()
    write_json(tmp_path / "r.json", found)
    write_csv(tmp_path / "r.csv", found)
    told = json.loads((tmp_path / "r.json").read_text())
    assert {"name", "target", "measured", "pass"} == told["targets"][0].keys()
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["policy"] for row in rows] == [c.policy for c in found.cells]
    assert rows[0]["ttft_p50_ms"] == "1000.0"
    page = report.render(found)
    assert page.count("<svg") == 2
    assert "SHORT" not in page
    assert '<span class="bad">short</span>' in page
