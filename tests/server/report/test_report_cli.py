"""`dfmr-report` reads logs, writes three renderings of one result, and says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.report.cli import duration, main
from server.request_log import RequestLog
from server.savings import ImageReport, Report

IMAGE = ImageReport(grid=(12, 12), factor=2, score=0.2, kept_tokens=144, cached=False)
REPORT = Report(original_visual_tokens=576, kept_visual_tokens=144, saved_visual_tokens=432, images=[IMAGE])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the server's own log writes for three requests and as many pairs as it takes."""
    written = RequestLog(tmp_path / "log.jsonl", 0, "llava|7b <x>")
    for _ in range(3):
        written.answered(REPORT, 1000.0, 2.0)
    for _ in range(20):
        written.pair("default", 0.1, 0.4, 0.9, False)
    written.close()
    return tmp_path / "log.jsonl"


def test_a_log_becomes_markdown_json_and_a_page(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--log", str(log), "--gpu-hour", "2.5", "--output", str(tmp_path / "out")]) == 0
    markdown = (tmp_path / "out.md").read_text()
    assert capsys.readouterr().out == markdown
    assert "| Visual tokens saved | 1,296 | measured |" in markdown
    assert "llava|7b" not in [line for line in markdown.splitlines() if line.startswith("|")]
    result = json.loads((tmp_path / "out.json").read_text())
    figures = {f["name"]: f for f in result["sections"][0]["figures"]}
    assert figures["Visual tokens saved"]["value"] == 1296
    assert figures["Prefill time saved"]["value"] == pytest.approx(0.9)
    page = (tmp_path / "out.html").read_text()
    assert "llava|7b &lt;x&gt;" in page
    assert "<svg" in page
    assert "http" not in page


def test_logs_of_several_processes_add_up(log: Path, tmp_path: Path) -> None:
    arguments = ["--log", str(log), str(log), "--gpu-hour", "1", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "| Visual tokens saved | 2,592 |" in (tmp_path / "out.md").read_text()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no request"),
        ("{", "Expecting"),
        ('{"time": 1}', "log.jsonl:1: not a line of a request log: KeyError('model')"),
    ],
)
def test_a_log_that_cannot_be_read_is_named(
    tmp_path: Path, content: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    assert main(["--log", str(tmp_path / "log.jsonl"), "--gpu-hour", "1"]) == 1
    assert complaint in capsys.readouterr().err


def test_a_prometheus_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prometheus", "http://127.0.0.1:9", "--gpu-hour", "1"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--log", "x", "--prometheus", "y", "--gpu-hour", "1"],
        ["--log", "x"],
        ["--log", "x", "--gpu-hour", "0"],
        ["--log", "x", "--gpu-hour", "1", "--since", "7"],
        ["--log", "x", "--gpu-hour", "1", "--prefill-tflops", "400"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_durations_are_a_number_and_a_unit() -> None:
    assert [duration(text) for text in ("90m", "12h", "7d", "2w")] == [5400, 43200, 604800, 1209600]
