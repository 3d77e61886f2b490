"""The loss plot, drawn from ``log.csv`` with Pillow alone."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDE, HIGH, MARGIN = 900, 420, 56
INK, GRID, LINE = (40, 40, 40), (222, 222, 222), (38, 96, 190)

Points = list[tuple[float, float]]


def read_losses(log: Path) -> dict[str, Points]:
    """(minutes, loss) by phase."""
    losses: dict[str, Points] = {}
    with log.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["name"] == "loss":
                losses.setdefault(row["phase"], []).append((float(row["seconds"]) / 60, float(row["value"])))
    return losses


def _panel(draw: ImageDraw.ImageDraw, left: int, title: str, points: Points) -> None:
    font = ImageFont.load_default(size=14)
    wide, high = WIDE // 2 - 2 * MARGIN, HIGH - 2 * MARGIN
    longest = max(minutes for minutes, _ in points) or 1.0
    logs = [math.log10(max(loss, 1e-4)) for _, loss in points]
    low, top = math.floor(min(logs) * 4) / 4, math.ceil(max(logs) * 4 + 1e-9) / 4
    span = max(top - low, 0.25)
    for tick in range(5):
        height = MARGIN + high * tick / 4
        draw.line((left, height, left + wide, height), fill=GRID)
        draw.text((left - 48, height - 8), f"{10 ** (low + span * (1 - tick / 4)):.2g}", fill=INK, font=font)
    line = [
        (left + wide * minutes / longest, MARGIN + high * (1 - (value - low) / span))
        for (minutes, _), value in zip(points, logs, strict=True)
    ]
    draw.line(line, fill=LINE, width=2)
    draw.text((left, 20), f"{title}: loss (log scale)", fill=INK, font=font)
    draw.text((left + wide - 60, MARGIN + high + 8), f"{longest:.0f} minutes", fill=INK, font=font)


def plot(log: Path, target: Path) -> None:
    """Write the loss of each phase over its minutes to ``target`` (PNG)."""
    picture = Image.new("RGB", (WIDE, HIGH), "white")
    draw = ImageDraw.Draw(picture)
    for index, (phase, points) in enumerate(read_losses(log).items()):
        _panel(draw, index % 2 * (WIDE // 2) + MARGIN + 8, phase, points)
    picture.save(target)
