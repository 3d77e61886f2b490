"""LLaVA's training format: a JSON list of conversations about pictures, checked before anything is trained on it.

    [{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                     {"from": "gpt", "value": "A gauge."}]}, ...]

``image`` is a path below the pictures' folder, or a list of them; each has its ``<image>`` in the conversation. A
sample without ``image`` is plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Turn(NamedTuple):
    """One message. ``text`` still holds a ``PLACEHOLDER`` where a picture stands."""

    role: str
    text: str


class Sample(NamedTuple):
    """One conversation with its pictures' files, in the order of the placeholders."""

    name: str
    pictures: list[Path]
    turns: list[Turn]


def read(path: Path, folder: Path) -> list[Sample]:
    """The samples of a LLaVA-format JSON file whose pictures lie below ``folder``.

    Raises:
        ValueError: the file or one of its samples is not in that format, or a picture is missing; the message names
            the sample.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: expected a list of samples with at least one in it")
    return [_sample(entry, f"{path}, sample {index}", folder) for index, entry in enumerate(content)]


def _sample(entry: Any, where: str, folder: Path) -> Sample:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, not {type(entry).__name__}")
    if "id" in entry:
        where = f"{where} (id {entry['id']!r})"
    turns = _turns(entry.get("conversations"), where)
    named = entry.get("image", entry.get("images", []))
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: 'image' must be a path or a list of paths, not {named!r}")
    wanted = sum(turn.text.count(PLACEHOLDER) for turn in turns)
    if wanted != len(names):
        raise ValueError(f"{where}: {len(names)} pictures but {wanted} {PLACEHOLDER} in the conversation")
    pictures = [folder / name for name in names]
    if missing := [str(picture) for picture in pictures if not picture.is_file()]:
        raise ValueError(f"{where}: no such picture: {', '.join(missing)}")
    return Sample(where, pictures, turns)


def _turns(conversations: Any, where: str) -> list[Turn]:
    if not isinstance(conversations, list):
        raise ValueError(f"{where}: 'conversations' must be a list of turns")
    turns = []
    for place, turn in enumerate(conversations):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError(f"{where}: turn {place} must be an object with 'from' and a text 'value'")
        if turn.get("from") not in ROLES:
            raise ValueError(f"{where}: turn {place} is from {turn.get('from')!r}; known: {', '.join(ROLES)}")
        turns.append(Turn(ROLES[turn["from"]], turn["value"]))
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise ValueError(f"{where}: turns must alternate, human first and gpt last")
    if any(turn.role != "user" and PLACEHOLDER in turn.text for turn in turns):
        raise ValueError(f"{where}: {PLACEHOLDER} may stand in a human's turn only")
    if any(turn.role == "assistant" and not turn.text.strip() for turn in turns):
        raise ValueError(f"{where}: an answer is empty")
    return turns


class Written(NamedTuple):
    """A picture and its questions and answers, to be written."""

    picture: Image.Image
    asked: list[tuple[str, str]]


def write(folder: Path, samples: Iterable[Written]) -> Path:
    """Write single-picture samples as ``folder/llava.json`` with PNG pictures beside it; returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, sample in enumerate(samples):
        name = f"{index:06}.png"
        sample.picture.save(folder / name)
        turns = []
        for place, (question, answer) in enumerate(sample.asked):
            opening = f"{PLACEHOLDER}\n" if place == 0 else ""
            turns += [{"from": "human", "value": opening + question}, {"from": "gpt", "value": answer}]
        entries.append({"id": str(index), "image": name, "conversations": turns})
    path = folder / "llava.json"
    path.write_text(json.dumps(entries))
    return path
