"""``python -m training.adaptation_curve``: accuracy at each pooling factor along runs of ``training.adapt``.

Runs must have been made with ``--keep-every``, on the embedded model's tower. All their models are asked the same
questions about the same held-out pictures, whose features are computed once, since no run changes the tower.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor
from tqdm import tqdm

from training import evaluate, scenes
from training.packing import Packer
from training.scenes import ASKED_FAMILIES, Question
from training.tokenizer import build
from training.vision_phase import pixels_of
from training.visual import feature_maps

GROUPS = {
    "backgrounds": ["background", "pattern"],
    "shapes": ["shape_color", "color_shape", "count", "where"],
    "print": ["read_large", "read_medium", "read_small", "word"],
    "gauges": ["gauge", "gauge_fine"],
    "surfaces": ["defect", "defect_tiny", "defect_kind"],
}
"""Kinds of question by what they look at. Pairs of pictures are left out: the demonstration's model has seen none."""

FACTORS = (1, 2, 3, 4)
BATCH = 8


class HeldOut(NamedTuple):
    """Held-out pictures: maps (pictures, 24, 24, channels), and what is asked about each."""

    maps: Tensor
    asked: list[list[Question]]


class Point(NamedTuple):
    """Accuracy of one model, at one factor, on one group of kinds."""

    run: str
    step: int
    factor: int
    group: str
    questions: int
    accuracy: float


def held_out(model: Path, seed: int, pictures: int) -> HeldOut:
    """Pictures of every family in turn from the held-out stream, which no training draws from."""
    found = [
        scenes.scene("held-out", f"adaptation/{seed}/{index}", ASKED_FAMILIES[index % len(ASKED_FAMILIES)])
        for index in range(pictures)
    ]
    loaded = evaluate.load(model)
    maps = [
        feature_maps(loaded, pixels_of([np.asarray(each.picture) for each in found[start : start + BATCH]]))
        for start in range(0, pictures, BATCH)
    ]
    return HeldOut(torch.cat(maps), [each.questions for each in found])


def measure(run: str, step: int, model: Path, data: HeldOut) -> list[Point]:
    """Exact-match accuracy of one model by factor and group; ``all`` is over every question."""
    loaded, packer, points = evaluate.load(model), Packer(build()), []
    group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    for factor in FACTORS:
        results: dict[str, list[bool]] = {group: [] for group in [*GROUPS, "all"]}
        for start in range(0, len(data.asked), BATCH):
            part = slice(start, start + BATCH)
            right = evaluate.answered(loaded, packer, data.asked[part], data.maps[part, None], factor)
            for asked, row in zip(data.asked[part], right, strict=True):
                for question, result in zip(asked, row, strict=True):
                    results[group_of[question.kind]].append(result)
                    results["all"].append(result)
        points += [
            Point(run, step, factor, group, len(found), sum(found) / len(found)) for group, found in results.items()
        ]
    return points


def write_csv(path: Path, points: list[Point]) -> None:
    """One row a point."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields)
        writer.writerows([*point[:-1], f"{point.accuracy:.4f}"] for point in points)


def table(points: list[Point], runs: list[str]) -> str:
    """Before, and each run's last step, by group and factor, as Markdown."""
    last = {run: max(point.step for point in points if point.run == run) for run in runs}
    columns = [(runs[0], 0), *((run, last[run]) for run in runs)]
    names = ["before", *(f"{run}, {last[run]} steps" for run in runs)]
    lines = ["| Questions | s | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    value = {point[:4]: point.accuracy for point in points}
    asked = {point.group: point.questions for point in points}
    for group in ["all", *GROUPS]:
        for factor in FACTORS:
            cells = [f"{value[run, step, factor, group]:.2f}" for run, step in columns]
            lines.append(f"| {group} ({asked[group]}) | {factor} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, points: list[Point], runs: list[str]) -> None:
    """Accuracy over all questions along each run, a line for every factor, as SVG."""
    figure, panels = pyplot.subplots(1, len(runs), figsize=(4.2 * len(runs), 3.4), sharey=True, squeeze=False)
    for panel, run in zip(panels[0], runs, strict=True):
        for factor in FACTORS:
            line = sorted((p.step, p.accuracy) for p in points if (p.run, p.factor, p.group) == (run, factor, "all"))
            panel.plot(*zip(*line, strict=True), marker="o", markersize=3, label=f"s = {factor}")
        panel.set_title(run, fontsize=10)
        panel.set_xlabel("steps")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("exact match, all questions")
    panels[0][-1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    pyplot.rcParams["svg.hashsalt"] = path.name
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.adaptation_curve", description=__doc__)
    parser.add_argument("before", type=Path, help="the model that the runs started from")
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FOLDER", help="a run's --out folder")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    given = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (run.partition("=") for run in given.run)}
    data = held_out(given.before, given.seed, given.pictures)
    before = measure("", 0, given.before, data)
    points = [point._replace(run=run) for run in folders for point in before]
    kept = [
        (run, int(step.name.removeprefix("step-")), step)
        for run, folder in folders.items()
        for step in folder.glob("step-*")
    ]
    for run, number, step in tqdm(sorted(kept), unit="model", disable=None):
        points += measure(run, number, step, data)
    write_csv(given.csv, points)
    draw(given.figure, points, list(folders))
    print(table(points, list(folders)))


if __name__ == "__main__":
    main()
