"""MMBench: multiple choice, asked once for every rotation of its choices and right only if all rotations are.

Reading a choice out of an answer follows VLMEvalKit's rules (``can_infer``): the one letter that stands alone, else
the one choice whose text occurs. An answer that neither reads counts as wrong; the official run asks a language model
about it, so figures here are a lower bound for models that chat.
"""

import csv
import string
import sys
from pathlib import Path

from evals.items import Item

PROMPT = "\nAnswer with the option's letter from the given choices directly."
_ROTATED = 1_000_000
_LETTERS = "ABCD"
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def chosen(answer: str, choices: dict[str, str]) -> str | None:
    """The letter that an answer picks, or None."""
    words = answer.translate(_MARKS).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and not (letters[0] == "A" and len(words) > 3):
        return letters[0]
    lowered = answer.lower()
    if len(lowered) > 2 * sum(map(len, choices.values())):
        return None
    named = [letter for letter, text in choices.items() if text.lower() in lowered]
    return named[0] if len(named) == 1 else None


def score(answer: str, item: Item) -> float:
    """1 if the right letter is picked, in this one rotation."""
    return float(chosen(answer, item.facts["choices"]) == item.answers[0])


def summary(answered: list[tuple[str, Item]]) -> dict[str, float]:
    """Circular and vanilla (first rotation only) accuracy in per cent, circular by category as well."""
    rotations: dict[str, list[tuple[float, Item]]] = {}
    for answer, item in answered:
        rotations.setdefault(item.all_of or item.id, []).append((score(answer, item), item))
    circular: dict[str, list[float]] = {}
    first: list[float] = []
    for asked in rotations.values():
        right = min(value for value, _ in asked)
        circular.setdefault("circular", []).append(right)
        circular.setdefault(f"circular, {asked[0][1].kind}", []).append(right)
        first.append(next((value for value, item in asked if item.facts["rotation"] == 0), asked[0][0]))
    figures = {name: round(100 * sum(values) / len(values), 2) for name, values in circular.items()}
    return {"vanilla": round(100 * sum(first) / len(first), 2)} | figures


def load(path: Path) -> list[Item]:
    """``MMBench_DEV_EN.tsv``: index, question, hint, A to D, answer, category, image (base64).

    Rotations that the file holds (index above a million) are taken as they are; a file without any gets them made.

    Raises:
        ValueError: a question has no answer.
    """
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    images = {row["index"]: row["image"] for row in rows}
    given = any(int(row["index"]) >= _ROTATED for row in rows)
    items = []
    for row in rows:
        # A picture that another row holds is given as that row's index.
        image = row["image"] if len(row["image"]) > 64 else images[row["image"]]
        choices = {letter: row[letter] for letter in _LETTERS if _present(row.get(letter))}
        if row["answer"] not in choices:
            raise ValueError(
                f"{path}: question {row['index']} has no answer; test splits are scored by MMBench's server"
            )
        turns = [0] if given else range(len(choices))
        items += [_item(row, image, choices, turn, rotated=given) for turn in turns]
    return items


def _present(text: str | None) -> bool:
    return bool(text) and text not in ("nan", "None")


def _item(row: dict[str, str], image: str, choices: dict[str, str], turn: int, *, rotated: bool) -> Item:
    index = int(row["index"])
    base = str(index % _ROTATED)
    letters, texts = list(choices), list(choices.values())
    turned = dict(zip(letters, texts[turn:] + texts[:turn], strict=True))
    answer = letters[(letters.index(row["answer"]) - turn) % len(letters)]
    hint = f"{row['hint']}\n" if _present(row.get("hint")) else ""
    listed = "".join(f"\n{letter}. {text}" for letter, text in turned.items())
    return Item(
        id=row["index"] if rotated else f"{base}/{string.ascii_lowercase[turn]}",
        pictures=(image,),
        question=f"{hint}{row['question']}{listed}{PROMPT}",
        answers=(answer,),
        kind=row.get("category") or "mmbench",
        scorer="mmbench",
        group=base,
        all_of=base,
        facts={"choices": turned, "rotation": index // _ROTATED if rotated else turn},
        benchmark="mmbench",
    )
