"""Made-up files in the public formats, scored by hand."""

import json
from pathlib import Path

import pytest
from fake_endpoint import picture

from evals.benchmarks import gqa, mmbench, pope, vqa
from evals.items import Item, read_jsonl, unit, write_jsonl
from evals.pictures import data_url, opened
from evals.scoring import SUMMARIES


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Dogs.", "dogs"),
        ("two", "2"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("what?", "what"),
        ("a\nb", "b"),
    ],
)
def test_vqa_normalisation(answer: str, wanted: str) -> None:
    assert vqa.normalised_vqav2(answer) == wanted


def test_textvqa_splits_possessives_and_drops_commas_first() -> None:
    assert vqa.normalised_textvqa("Macy's") == "macy 's"
    assert vqa.normalised_textvqa("red,white") == "redwhite"


@pytest.mark.parametrize(
    ("matches", "wanted"),
    # One of ten agrees: that one's turn to be left out scores 0, the nine others 1/3 each, and so on.
    [(0, 0.0), (1, 9 / 30), (2, (2 * 1 + 8 * 2) / 30), (3, (3 * 2 + 7 * 3) / 30), (4, 1.0), (10, 1.0)],
)
def test_soft_accuracy(matches: int, wanted: float) -> None:
    accepted = ["red"] * matches + [f"other{n}" for n in range(10 - matches)]
    assert vqa.soft_accuracy("red", accepted) == pytest.approx(wanted)


def test_vqav2_files(tmp_path: Path) -> None:
    questions = {
        "data_subtype": "val2014",
        "questions": [
            {"image_id": 42, "question_id": 420, "question": "How many?"},
            {"image_id": 42, "question_id": 421, "question": "Is it red?"},
        ],
    }
    people = {420: ["2"] * 3 + ["3"] * 7, 421: ["yes"] * 10}
    annotations = {
        "annotations": [
            {
                "question_id": key,
                "image_id": 42,
                "answer_type": "number" if key == 420 else "yes/no",
                "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(answers)],
            }
            for key, answers in people.items()
        ]
    }
    (tmp_path / "q.json").write_text(json.dumps(questions))
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    found = vqa.load_vqav2(tmp_path / "q.json", tmp_path / "a.json", tmp_path)
    assert found[0].pictures == (str(tmp_path / "COCO_val2014_000000000042.jpg"),)
    assert [item.kind for item in found] == ["number", "yes/no"]
    assert {item.group for item in found} == {"42"}
    assert vqa.score_vqav2("Two.", found[0]) == pytest.approx(0.9)
    assert vqa.score_vqav2("three", found[0]) == 1.0
    assert vqa.score_vqav2("Yes!", found[1]) == 1.0
    assert SUMMARIES["vqav2"]([("two", found[0]), ("no", found[1])]) == {"accuracy (%)": 45.0}


def test_textvqa_files(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image_id": "abc", "question": "What brand?", "answers": ["Nike"] * 2 + ["nike."] * 8}]
    (tmp_path / "t.json").write_text(json.dumps({"data": rows}))
    (item,) = vqa.load_textvqa(tmp_path / "t.json", tmp_path)
    assert item.pictures == (str(tmp_path / "abc.jpg"),)
    assert vqa.score_textvqa("NIKE", item) == 1.0
    assert vqa.score_textvqa("adidas", item) == 0.0


def test_gqa_files(tmp_path: Path) -> None:
    def row(answer: str, structural: str, entailed: list[str]) -> dict[str, object]:
        types = {"structural": structural, "semantic": "attr", "detailed": "x"}
        return {"imageId": "n1", "question": "?", "answer": answer, "types": types, "entailed": entailed}

    rows = {"1": row("red", "query", ["1", "2", "3"]), "2": row("yes", "verify", ["2"]), "3": row("no", "logical", [])}
    (tmp_path / "g.json").write_text(json.dumps(rows))
    found = gqa.load(tmp_path / "g.json", tmp_path)
    assert [item.kind for item in found] == ["query", "verify", "logical"]
    answered = list(zip(["Red.", "yes", "yes"], found, strict=True))
    assert gqa.summary(answered) == {
        "accuracy (%)": 66.67,
        "open (%)": 100.0,
        "binary (%)": 50.0,
        "consistency (%)": 50.0,
    }


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes, there is.", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not a dog", False),
        ("There is a dog. No cat", True),
        ("NO", True),
        ("", True),
    ],
)
def test_pope_reads_answers_as_its_script_does(answer: str, yes: bool) -> None:
    assert pope.says_yes(answer) is yes


def test_pope_files(tmp_path: Path) -> None:
    labels = ["yes", "yes", "yes", "no", "no"]
    files = []
    for kind in ("random", "popular"):
        rows = [{"question_id": n, "image": f"{n}.jpg", "text": "Is it?", "label": x} for n, x in enumerate(labels, 1)]
        files.append(tmp_path / f"coco_pope_{kind}.json")
        files[-1].write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = pope.load(files, tmp_path)
    assert len({item.id for item in found}) == 10
    # Two of three found, one of two made up: precision 2/3, recall 2/3.
    said = ["Yes", "Yes", "No", "Yes", "No"]
    figures = pope.summary(list(zip(said * 2, found, strict=True)))
    assert figures["random precision"] == pytest.approx(2 / 3)
    assert figures["random recall"] == pytest.approx(2 / 3)
    assert figures["popular F1"] == pytest.approx(2 / 3)
    assert figures["random accuracy"] == pytest.approx(3 / 5)
    assert figures["random yes ratio"] == pytest.approx(3 / 5)
    assert figures["mean F1"] == pytest.approx(2 / 3)
    assert pope.confusion([("no", item) for item in found])["F1"] == 0


def mmbench_file(path: Path, rows: list[list[str]]) -> Path:
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    path.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")
    return path


@pytest.fixture
def image() -> str:
    return data_url(opened(picture(1, 2, 3))).partition(",")[2]


def test_mmbench_makes_every_rotation(tmp_path: Path, image: str) -> None:
    rows = [
        ["7", "What?", "Look.", "cat", "dog", "cow", "", "B", "animals", image],
        ["8", "And?", "nan", "up", "down", "nan", "", "A", "places", "7"],
    ]
    found = mmbench.load(mmbench_file(tmp_path / "m.tsv", rows))
    assert [item.id for item in found] == ["7/a", "7/b", "7/c", "8/a", "8/b"]
    assert [item.facts["choices"][item.answers[0]] for item in found] == ["dog"] * 3 + ["up"] * 2
    assert [item.answers[0] for item in found[:3]] == ["B", "A", "C"]
    assert found[1].question.startswith("Look.\nWhat?\nA. dog\nB. cow\nC. cat\n")
    assert found[3].pictures == found[0].pictures


def test_mmbench_counts_a_question_only_if_every_rotation_is_right(tmp_path: Path, image: str) -> None:
    rows = [
        ["7", "What?", "", "cat", "dog", "", "", "B", "animals", image],
        ["8", "And?", "", "up", "down", "", "", "A", "places", image],
    ]
    found = mmbench.load(mmbench_file(tmp_path / "m.tsv", rows))
    answered = list(zip(["B", "A", "A", "A"], found, strict=True))
    figures = {"vanilla": 100.0, "circular": 50.0, "circular, animals": 100.0, "circular, places": 0.0}
    assert mmbench.summary(answered) == figures
    assert [unit(item) for item in found] == ["all of 7", "all of 7", "all of 8", "all of 8"]


def test_mmbench_takes_rotations_that_the_file_holds(tmp_path: Path, image: str) -> None:
    rows = [
        ["7", "What?", "", "cat", "dog", "", "", "B", "animals", image],
        ["1000007", "What?", "", "dog", "cat", "", "", "A", "animals", "7"],
    ]
    found = mmbench.load(mmbench_file(tmp_path / "m.tsv", rows))
    assert [(item.id, item.all_of, item.answers[0]) for item in found] == [("7", "7", "B"), ("1000007", "7", "A")]
    assert [item.facts["rotation"] for item in found] == [0, 1]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. dog", "B"),
        ("The answer is C.", "C"),
        ("A or B", None),
        ("a dog", "B"),
        ("A dog is there", "B"),
        ("cat and dog", None),
        ("I see a dog and much else that has nothing at all to do with it", None),
        ("", None),
    ],
)
def test_mmbench_reads_a_choice(answer: str, wanted: str | None) -> None:
    assert mmbench.chosen(answer, {"A": "cat", "B": "dog", "C": "cow"}) == wanted


def test_converted_files_read_back(tmp_path: Path, image: str) -> None:
    found = mmbench.load(mmbench_file(tmp_path / "m.tsv", [["7", "?", "", "a", "b", "", "", "A", "k", image * 12]]))
    write_jsonl(tmp_path / "m.jsonl", found)
    read: list[Item] = read_jsonl(tmp_path / "m.jsonl")
    assert read == found
