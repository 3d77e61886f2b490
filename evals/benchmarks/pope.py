"""POPE: does the model see objects that are not there? F1, precision, recall and the share of yes.

Rules as in the official ``evaluate.py`` (AoiDragon/POPE): the first sentence counts; one of the words no, No or not
makes it a no, all else is a yes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from evals.benchmarks.vqa import PROMPT
from evals.items import Item


def says_yes(answer: str) -> bool:
    """How the official script reads an answer."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def score(answer: str, item: Item) -> float:
    """1 if yes or no is right."""
    return float(says_yes(answer) == (item.answers[0] == "yes"))


def summary(answered: list[tuple[str, Item]]) -> dict[str, float]:
    """The official figures per category, and their mean F1 where there are several."""
    by_kind: dict[str, list[tuple[str, Item]]] = {}
    for answer, item in answered:
        by_kind.setdefault(item.kind, []).append((answer, item))
    figures: dict[str, float] = {}
    for kind, pairs in by_kind.items():
        figures |= {f"{kind} {name}": value for name, value in confusion(pairs).items()}
    if len(by_kind) > 1:
        figures["mean F1"] = sum(figures[f"{kind} F1"] for kind in by_kind) / len(by_kind)
    return figures


def confusion(answered: Sequence[tuple[str, Item]]) -> dict[str, float]:
    """F1, precision and recall of yes, accuracy and the share of yes; 0 where a denominator is."""
    said = [says_yes(answer) for answer, _ in answered]
    true = [item.answers[0] == "yes" for _, item in answered]
    both = sum(s and t for s, t in zip(said, true, strict=True))
    precision = both / sum(said) if any(said) else 0.0
    recall = both / sum(true) if any(true) else 0.0
    return {
        "F1": 2 * precision * recall / (precision + recall) if both else 0.0,
        "precision": precision,
        "recall": recall,
        "accuracy": sum(s == t for s, t in zip(said, true, strict=True)) / len(said),
        "yes ratio": sum(said) / len(said),
    }


def load(files: Sequence[Path], images: Path) -> list[Item]:
    """``coco_pope_random.json``, ``..._popular.json``, ``..._adversarial.json`` (JSON lines); kind: their category."""
    items = []
    for path in files:
        kind = path.stem.rpartition("_")[2]
        for line in path.read_text().splitlines():
            if not line.strip():
                continue
            row = json.loads(line)
            items.append(
                Item(
                    id=f"{kind}/{row['question_id']}",
                    pictures=(str(images / row["image"]),),
                    question=row["text"] + PROMPT,
                    answers=(row["label"],),
                    kind=kind,
                    scorer="pope",
                    group=row["image"],
                    benchmark="pope",
                )
            )
    return items
