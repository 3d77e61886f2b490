"""Commands from end to end, against a small endpoint."""

import csv
import json
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, picture

from evals.cli import main
from evals.items import Item, write_jsonl


@pytest.fixture
def data(items: list[Item], tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data.jsonl", items)
    return tmp_path / "data.jsonl"


def test_run_writes_results_and_one_page(
    fake: FakeEndpoint, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["run", "--endpoint", fake.url, "--data", str(data), "--out", str(out), "--cases", "2"]
    main([*arguments, "--policies", "full", "dfmr", "fixed", "drop-random"])
    results = json.loads((out / "results.json").read_text())
    assert [p["name"] for p in results["policies"]] == ["full", "dfmr", "fixed@dfmr", "drop-random@dfmr"]
    assert results["policies"][3]["status"] == "not offered"
    assert all(set(target) == {"name", "target", "measured", "pass"} for target in results["targets"])
    by_name = {target["name"]: target for target in results["targets"]}
    kept = by_name["accuracy of dfmr as a share of uncompressed"]
    assert kept == {"name": kept["name"], "target": ">= 0.99", "measured": 0.6667, "pass": False}
    dropped = by_name["dfmr minus drop-random at equal mean tokens: lower end of the 95 % interval"]
    assert (dropped["measured"], dropped["pass"]) == (None, False)
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows if row["policy"] == "dfmr"} == {"all", "simple", "rich", "blind spot"}
    page = (out / "report.html").read_text()
    assert page.count("<img") >= 4
    assert "<svg" in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "not measured: refused" in page
    told = capsys.readouterr()
    assert "fixed@dfmr" in told.out
    assert "dfmr: 30/30" in told.err


def test_field_names_what_the_score_reads_wrongly(fake: FakeEndpoint, tmp_path: Path) -> None:
    """Darkness makes these pictures poorer to the score, and their answers change with their colour."""
    made = [
        Item(id=str(n), pictures=(picture(30, 60, 4),), question="?", answers=("60",), kind="k") for n in range(12)
    ] + [
        Item(id=f"s{n}", pictures=(picture(15, 60, 1),), question="?", answers=("60",), kind="small print")
        for n in range(8)
    ]
    write_jsonl(tmp_path / "data.jsonl", made)
    out = tmp_path / "out"
    arguments = ["field", "--endpoint", fake.url, "--data", str(tmp_path / "data.jsonl"), "--out", str(out)]
    main([*arguments, "--conditions", "jpeg:95", "darkness"])
    results = json.loads((out / "field.json").read_text())
    assert [(c["condition"], c["amount"]) for c in results["cells"] if c["policy"] == "dfmr"] == [
        ("clean", None), ("jpeg", 95), ("darkness", 0.5), ("darkness", 0.25), ("darkness", 0.1),
    ]  # fmt: skip
    ratios = [c["score_ratio"] for c in results["cells"] if c["policy"] == "dfmr" and c["condition"] == "darkness"]
    assert ratios == pytest.approx([0.5, 0.25, 0.1], abs=0.06)
    poor = [f for f in results["findings"] if f["reading"] == "poor"]
    assert "kind:small print" in {finding["subject"] for finding in poor}
    assert (out / "field.html").read_text().count("<svg") == 3
    assert len((out / "field.csv").read_text().splitlines()) == 1 + 2 * 5


def test_convert_then_run_gives_official_figures(fake: FakeEndpoint, tmp_path: Path) -> None:
    for n, answer in enumerate([7, 8]):
        (tmp_path / f"{n}.png").write_bytes(picture(90, answer, 1))
    rows = {
        str(n): {"imageId": str(n), "question": "?", "answer": "7", "types": {"structural": "query", "semantic": "obj"}}
        for n in range(2)
    }
    for n in range(2):
        (tmp_path / f"{n}.jpg").write_bytes((tmp_path / f"{n}.png").read_bytes())
    (tmp_path / "gqa.json").write_text(json.dumps(rows))
    data, out = tmp_path / "gqa.jsonl", tmp_path / "out"
    main(["convert", "gqa", str(tmp_path / "gqa.json"), "--images", str(tmp_path), "--out", str(data)])
    main(["run", "--endpoint", fake.url, "--data", str(data), "--out", str(out), "--policies", "full"])
    (full,) = json.loads((out / "results.json").read_text())["policies"]
    assert full["official"] == {"accuracy (%)": 50.0, "open (%)": 50.0}


def test_convert_says_what_a_wrong_file_lacks(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"questions": []}')
    with pytest.raises(SystemExit, match="not a file of textvqa: 'data' is missing"):
        main(["convert", "textvqa", str(tmp_path / "x.json"), "--out", str(tmp_path / "y.jsonl")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "nonsense"], "unknown policy"),
        (["--policies", "dfmr", "--primary", "dfmr@0.5"], "not among the policies"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--data", "builtin:nothing"], "no built-in set"),
        (["--scorer", "nothing"], "unknown scorer"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["run", "--out", str(tmp_path), *arguments])
