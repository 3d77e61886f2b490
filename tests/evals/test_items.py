import base64
import io
import json
from pathlib import Path

import pytest
from fake_endpoint import picture
from PIL import Image

from evals import items, pictures
from evals.items import Item, digest, load, read_jsonl, sample, write_jsonl

PNG = picture(1, 2, 3)


def jsonl(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_pictures_as_path_url_and_base64(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(PNG)
    encoded = base64.b64encode(PNG).decode()
    sources = ["pictures/a.png", encoded, f"data:image/png;base64,{encoded}", "https://example.com/a.png"]
    (item,) = read_jsonl(jsonl(tmp_path / "x.jsonl", {"pictures": sources, "question": "?", "answer": 4, "kind": "k"}))
    urls = [pictures.upload_url(source) for source in item.pictures]
    assert urls[:3] == [f"data:image/png;base64,{encoded}"] * 3
    assert urls[3] == "https://example.com/a.png"
    assert [pictures.opened(source).getpixel((0, 0)) for source in item.pictures[:3]] == [(1, 2, 3)] * 3
    assert item.answers == ("4",)
    assert item.id == "1"


def test_bytes_are_sent_unchanged_with_their_own_type() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "WEBP")
    url = pictures.upload_url(buffer.getvalue())
    assert url.startswith("data:image/webp;base64,")
    assert pictures.read(url) == buffer.getvalue()


def test_aliases(tmp_path: Path) -> None:
    found = read_jsonl(
        jsonl(
            tmp_path / "x.jsonl",
            {"image": "a.png", "question": "?", "answers": ["yes", "yeah"]},
            {"id": "b", "images": ["a.png", "b.png"], "question": "?", "answer": "no"},
        )
    )
    assert [item.answers for item in found] == [("yes", "yeah"), ("no",)]
    assert [len(item.pictures) for item in found] == [1, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": "a"}, "line 2.*pictures"),
        ({"picture": "a.png", "question": "?", "answer": "a", "colour": 1}, "line 2.*colour"),
        ({"picture": "a.png", "question": "?", "answer": "a", "id": "1"}, "line 2.*was there before"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    good = {"id": "1", "picture": "a.png", "question": "?", "answer": "a"}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_jsonl(jsonl(tmp_path / "x.jsonl", good, row))


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    made = [Item(id="a", pictures=(PNG,), question="?", answers=("x", "y"), kind="k", all_of="q", facts={"n": 1})]
    assert write_jsonl(tmp_path / "x.jsonl", made) == 1
    (read,) = read_jsonl(tmp_path / "x.jsonl")
    assert pictures.read(read.pictures[0]) == PNG
    assert read.model_copy(update={"pictures": (PNG,)}) == made[0]


def test_samples_are_repeatable_and_keep_sets_whole() -> None:
    many = [Item(id=str(n), pictures=(PNG,), question="?", answers=("x",), all_of=str(n // 4)) for n in range(40)]
    few = sample(many, 13, seed=1)
    assert len(few) == 12
    assert {item.all_of for item in few} == {item.all_of for item in sample(many, 12, seed=1)}
    assert all(sum(other.all_of == item.all_of for other in few) == 4 for item in few)
    assert [int(item.id) for item in few] == sorted(int(item.id) for item in few)
    assert sample(many, 12, seed=2) != sample(many, 12, seed=1)


def test_built_in_scenes_are_repeatable_and_never_those_of_calibration() -> None:
    kinds = ["background", "two_more"]
    once, again = (load("builtin:scenes", seed=3, count=4, kinds=kinds) for _ in range(2))
    calibration = load("builtin:scenes", seed=3, count=4, kinds=kinds, split=items.CALIBRATION_SPLIT)
    assert digest(once) == digest(again) != digest(calibration)
    assert not {item.pictures for item in once} & {item.pictures for item in calibration}
    assert [len(item.pictures) for item in once] == [1, 2, 1, 2]


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="no built-in set"):
        load("builtin:nothing")
