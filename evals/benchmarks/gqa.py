"""GQA: exact match, with accuracy for binary and open questions as in the official ``eval.py``.

The official consistency is computed where the questions name what they entail. Validity, plausibility and
distribution need further files of the GQA release and are left out.
"""

import json
from pathlib import Path

from evals.benchmarks.vqa import PROMPT
from evals.items import Item


def prediction(answer: str) -> str:
    """A model's answer as LLaVA submits it: lower case, without a final period."""
    return answer.strip().rstrip(".").lower()


def score(answer: str, item: Item) -> float:
    """1 for an exact match."""
    return float(prediction(answer) == item.answers[0])


def summary(answered: list[tuple[str, Item]]) -> dict[str, float]:
    """Accuracy, binary, open and, where known, consistency, in per cent.

    Consistency: over correctly answered questions that entail others, the share of those others that is right too.
    """
    right = {item.id: score(answer, item) for answer, item in answered}
    figures = {"accuracy": list(right.values())}
    for answer, item in answered:
        figures.setdefault("open" if item.kind == "query" else "binary", []).append(score(answer, item))
        entailed = [right[other] for other in item.facts.get("entailed", ()) if other != item.id and other in right]
        if right[item.id] and entailed:
            figures.setdefault("consistency", []).append(sum(entailed) / len(entailed))
    return {f"{name} (%)": round(100 * sum(values) / len(values), 2) for name, values in figures.items()}


def load(questions: Path, images: Path) -> list[Item]:
    """``testdev_balanced_questions.json`` or ``val_balanced_questions.json``; kind: structural type."""
    return [
        Item(
            id=key,
            pictures=(str(images / f"{row['imageId']}.jpg"),),
            question=row["question"] + PROMPT,
            answers=(row["answer"],),
            kind=row["types"]["structural"],
            scorer="gqa",
            group=row["imageId"],
            facts={"semantic": row["types"]["semantic"], "entailed": row.get("entailed", [])},
            benchmark="gqa",
        )
        for key, row in json.loads(questions.read_text()).items()
    ]
