"""The request log has a line for each request, is bounded, and never waits for its disk."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from server import request_log as module
from server.request_log import RequestLog
from server.savings import ImageReport, Report

IMAGE = ImageReport(grid=(12, 12), factor=2, score=0.2, kept_tokens=144, cached=False)


def report(pictures: int = 1) -> Report:
    original, kept = 576 * pictures, 144 * pictures
    return Report(
        original_visual_tokens=original,
        kept_visual_tokens=kept,
        saved_visual_tokens=original - kept,
        images=[IMAGE] * pictures,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_requests_and_pairs_are_lines_of_numbers(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.jsonl", 0, "m")
    log.answered(report(2), 10.0, 1.23456)
    log.pair("lean", 0.1, 0.4, 0.5, False)
    log.close()
    request, pair = lines(tmp_path / "log.jsonl")
    assert request.pop("time") == pytest.approx(pair.pop("time"), abs=5)
    assert request == {
        "model": "m",
        "kind": "request",
        "profile": "default",
        "images": 2,
        "original_visual_tokens": 1152,
        "kept_visual_tokens": 288,
        "kv_bytes_saved": 8640.0,
        "seconds": 1.2346,
    }
    assert pair == {
        "model": "m",
        "kind": "pair",
        "profile": "lean",
        "ttft": 0.1,
        "baseline_ttft": 0.4,
        "overlap": 0.5,
        "exact": False,
    }


def test_every_api_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert RequestLog(tmp_path / "log.jsonl", 2, "m").path == tmp_path / "log-2.jsonl"


def test_files_are_rotated_and_old_ones_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    log = RequestLog(tmp_path / "log.jsonl", 0, "m")
    for _ in range(100):
        log.answered(report(), 1.0, 0.1)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + module.KEPT_FILES
    assert all(file.stat().st_size <= 1000 for file in files)
    assert all(lines(file) for file in files)


def test_a_disk_that_does_not_keep_up_loses_lines_which_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING", 5)
    log = RequestLog(tmp_path / "log.jsonl", 0, "m-slow")
    stuck, go_on = threading.Event(), threading.Event()

    def emit(record: Any) -> None:
        stuck.set()
        go_on.wait()

    monkeypatch.setattr(log._file, "emit", emit)
    log.answered(report(), 1.0, 0.1)
    stuck.wait()
    for _ in range(8):
        log.answered(report(), 1.0, 0.1)
    assert REGISTRY.get_sample_value("dfmr_request_log_dropped_total", {"model_name": "m-slow"}) == 3
    go_on.set()
    log.close()


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        RequestLog(tmp_path / "nowhere" / "log.jsonl", 0, "m")
