"""The model card, written from the measured accuracies and the training log so that its figures cannot drift."""

from __future__ import annotations

import csv
from pathlib import Path

from training.evaluate import Accuracies, table
from training.scenes import DETAIL_KINDS, PHRASES, WORDS

GOOD, POOR = 0.9, 0.6

HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# tiny-llava-dfmr

A LLaVA-1.5-shaped model of {megabytes:.1f} MB that was trained from random weights on CPU cores alone, feature maps
average-pooled by a factor s of 1, 2, 3, 4, 6 or 8 before the projector. It exists so that a server that compresses
visual tokens can be demonstrated and tested end to end with a model that really looks at its pictures. It is not a
general assistant: it answers the kinds of question below, about drawn pictures like those of `training/scenes.py`.

- CLIP vision tower: 336 px, patches of 14 (24 x 24 = 576 tokens), width 192, features of layer -2, CLS dropped.
- Projector: two layers. Language model: Llama, width 256, 3 layers of 4 heads of 64; byte-level tokenizer, one token a
  digit. Everything in bf16.
- Loads unchanged in `transformers` (`LlavaForConditionalGeneration`) and in vLLM; several pictures in one message work.

"""

BODY = """
Exact match over {questions} held-out questions of each kind (seed {seed}; held-out pictures are drawn from another
random stream than training pictures). Blind: the question alone, without its picture.

Right at s = 1 in at least nine of ten: {good}. Do not rely on: {poor}.

## What it was trained on

Procedural pictures only, drawn by `training/scenes.py`: shapes, printed numbers of one to four digits (18 to 120
pixels) and words ({words}) in one typeface, dial gauges, material surfaces with and without defects, on plain,
gradient, striped, dotted, checked and noisy backgrounds; single pictures
and pairs. No photograph, no text corpus and no other
model was used. {detail} need few pixels and lose at high s; backgrounds and large shapes do not.

| Kind | Asked as |
|---|---|
{phrases}

## How it was trained

`python -m training.tiny` (seed 0), in two phases: first the vision tower alone, on what each of its 24 x 24 cells
shows; then projector and language model on pooled feature maps, the tower frozen. {run}
`training-log.csv` and `training-loss.png` are this run's log. {remarks}
"""


def last_steps(log: Path) -> dict[str, tuple[int, float]]:
    """Steps and minutes of each phase."""
    found: dict[str, tuple[int, float]] = {}
    with log.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["phase"]] = int(row["step"]), float(row["seconds"]) / 60
    return found


def _names(kinds: list[str]) -> str:
    return ", ".join(f"`{kind}`" for kind in kinds) or "none"


def write(folder: Path, accuracies: Accuracies, questions: int, seed: int, remarks: str = "") -> None:
    """Write ``README.md`` into the model's folder, which holds the weights and ``training-log.csv``."""
    best = {kind: row[1] for kind, row in accuracies.items()}
    run = " ".join(
        f"The {phase} phase took {steps} steps in {minutes:.0f} minutes."
        for phase, (steps, minutes) in last_steps(folder / "training-log.csv").items()
    )
    body = BODY.format(
        questions=questions,
        seed=seed,
        good=_names([kind for kind, value in best.items() if value >= GOOD]),
        poor=_names([kind for kind, value in best.items() if value < POOR]),
        words=", ".join(WORDS),
        detail=_names(DETAIL_KINDS),
        phrases="\n".join(f"| {kind} | {' / '.join(phrases)} |" for kind, phrases in PHRASES.items()),
        run=run,
        remarks=remarks,
    )
    head = HEAD.format(megabytes=(folder / "model.safetensors").stat().st_size / 1e6)
    (folder / "README.md").write_text(f"{head}## Accuracy\n\n{table(accuracies)}\n{body}")
