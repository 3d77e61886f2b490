"""Questions about pictures: what one is, and where they come from."""

import hashlib
import io
import json
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evals import pictures

BUILTIN_SPLIT = "evals"
"""Held-out pictures of this name are used by nothing else: neither training nor its own checks ever draw them."""

CALIBRATION_SPLIT = "calibration"
"""Pictures from which thresholds for a token target are found; none of them is ever asked about."""


class Item(BaseModel):
    """One question.

    Attributes:
        id: unique in its data set.
        pictures: a path, URL, data URL or bare base64 each; bytes for generated ones.
        answers: accepted answers; what more than one means is up to the scorer.
        kind: accuracy is reported for each kind.
        scorer: name of the scorer; None takes the run's.
        group: questions of one group share pictures and are drawn together by the bootstrap; None: on its own.
        all_of: questions of the same value count as one that is right only if all are.
        facts: what its scorer or benchmark needs besides.
        benchmark: name of the public benchmark it is from, for its official summary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    pictures: tuple[str | bytes, ...] = Field(min_length=1)
    question: str
    answers: tuple[str, ...] = Field(min_length=1)
    kind: str = "all"
    scorer: str | None = None
    group: str | None = None
    all_of: str | None = None
    facts: dict[str, Any] = {}
    benchmark: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _forgiving(cls, values: Any) -> Any:
        """``answer`` and ``picture`` / ``image`` / ``images`` are taken too, a single value for a list as well."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for alias, name in (
            ("answer", "answers"),
            ("picture", "pictures"),
            ("image", "pictures"),
            ("images", "pictures"),
        ):
            if alias in values:
                values[name] = values.pop(alias)
        for name in ("answers", "pictures"):
            if isinstance(values.get(name), (str, int, float, bytes)):
                values[name] = [values[name]]
        if isinstance(values.get("answers"), list):
            values["answers"] = [str(answer) for answer in values["answers"]]
        return values


def read_jsonl(path: Path) -> list[Item]:
    """Items of a JSONL file; relative picture paths are relative to its folder, missing ids become line numbers.

    Raises:
        ValueError: a line is not an item, or two share an id; the message names the line.
    """
    items: list[Item] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = Item.model_validate({"id": str(number), **json.loads(line)})
        except (ValidationError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if item.id in seen:
            raise ValueError(f"{path}, line {number}: the id {item.id!r} was there before")
        seen.add(item.id)
        located = tuple(pictures.located(source, path.parent) for source in item.pictures)
        items.append(item.model_copy(update={"pictures": located}))
    return items


def write_jsonl(path: Path, items: Iterable[Item]) -> int:
    """Write items as JSONL and say how many; pictures that are bytes become data URLs."""
    count = 0
    with path.open("w") as file:
        for item in items:
            sources = tuple(pictures.upload_url(s) if isinstance(s, bytes) else s for s in item.pictures)
            row = item.model_copy(update={"pictures": sources}).model_dump(exclude_defaults=True)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _scenes(split: str, seed: int, count: int, kinds: Collection[str] | None) -> list[Item]:
    from training import scenes  # draws with numpy and PIL only, but is wanted by this set alone

    items = []
    for number, example in enumerate(scenes.examples(seed, count, kinds, split=split)):
        items.append(
            Item(
                id=f"{split}/{seed}/{number:05d}",
                pictures=tuple(_png(picture) for picture in example.pictures),
                question=example.question,
                answers=(example.answer,),
                kind=example.kind,
            )
        )
    return items


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


BUILTIN: dict[str, Callable[[str, int, int, Collection[str] | None], list[Item]]] = {"scenes": _scenes}
"""Generated sets by name: (split, seed, count, kinds) to items."""


def load(
    spec: str,
    *,
    seed: int = 0,
    count: int | None = None,
    kinds: Collection[str] | None = None,
    split: str = BUILTIN_SPLIT,
) -> list[Item]:
    """The items that ``builtin:NAME`` or a JSONL file names.

    Args:
        count: at most as many; from a file a random sample by ``seed``, in the file's order. None is all of a file and
            600 of a built-in set.
        kinds: only these kinds.
        split: which of a built-in set's disjoint parts.

    Raises:
        ValueError: there is no such set, or nothing is left.
    """
    if spec.startswith("builtin:"):
        name = spec.removeprefix("builtin:")
        if name not in BUILTIN:
            raise ValueError(f"no built-in set {name!r}; there are {', '.join(BUILTIN)}")
        return BUILTIN[name](split, seed, count or 600, kinds)
    items = [item for item in read_jsonl(Path(spec)) if not kinds or item.kind in kinds]
    if not items:
        raise ValueError(f"{spec} holds no question of the wanted kinds")
    return sample(items, count, seed)


def sample(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """``count`` of the items at random, whole ``all_of`` sets only, in their order."""
    if count is None or count >= len(items):
        return list(items)
    units: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        units.setdefault(unit(item), []).append(index)
    names = list(units)
    random.Random(seed).shuffle(names)
    chosen: list[int] = []
    for name in names:
        if len(chosen) + len(units[name]) <= count:
            chosen += units[name]
    return [items[index] for index in sorted(chosen)]


def unit(item: Item) -> str:
    """What is scored as one: the item, or the set of which all must be right."""
    return f"all of {item.all_of}" if item.all_of is not None else item.id


def digest(items: Iterable[Item]) -> str:
    """Identity of a data set, pictures that are files by their path."""
    total = hashlib.sha256()
    for item in items:
        total.update(f"{item.id}\0{item.question}\0{item.answers}\0{item.kind}\0".encode())
        for source in item.pictures:
            total.update(source if isinstance(source, bytes) else source.encode())
    return total.hexdigest()[:16]
