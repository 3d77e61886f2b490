"""Answers on disk: one line each, appended as they come, so that a run can be stopped and taken up again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from evals.policies import Plan

ANSWERS = "answers.jsonl"
MANIFEST = "run.json"


class Row(BaseModel):
    """One answered or failed request. The fields from ``answer`` on are those of `client.Reply`."""

    policy: str
    id: str
    dfmr: dict[str, Any] | None = None
    change: str | None = None
    condition: str | None = None
    pictures: int = 1
    answer: str = ""
    finish: str | None = None
    kept: int | None = None
    original: int | None = None
    factors: list[int | None] = []
    scores: list[float] = []
    cached: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ttft: float | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def key(self) -> tuple[str, str | None, str]:
        """Policy, field condition and item."""
        return self.policy, self.condition, self.id

    def answers(self, plan: Plan) -> bool:
        """Whether this is an answer to that very request."""
        return self.error is None and self.dfmr == plan.dfmr and self.change == described(plan)


def described(plan: Plan) -> str | None:
    """A plan's change to its pictures, as it stands in a row."""
    return None if plan.change is None else str(plan.change)


class Store:
    """The folder of a run. The last line of a key counts.

    Args:
        folder: made if it is missing.
        manifest: what makes answers comparable. A folder that holds answers under another one is refused.

    Raises:
        ValueError: it does; the message names what differs.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / ANSWERS
        self._rows: dict[tuple[str, str | None, str], Row] = {}
        wanted = json.loads(json.dumps(manifest))
        if self._path.is_file():
            found = json.loads((folder / MANIFEST).read_text())
            if different := sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k)):
                raise ValueError(f"{folder} holds another run: {', '.join(different)} differ. Choose another --out.")
            _drop_cut_line(self._path)
            self._rows = {row.key: row for row in read_rows(self._path)}
        (folder / MANIFEST).write_text(json.dumps(wanted, indent=2) + "\n")
        self._file: TextIO = self._path.open("a")

    def add(self, row: Row) -> None:
        """Keep a row, on disk first."""
        self._file.write(row.model_dump_json(exclude_defaults=True) + "\n")
        self._file.flush()
        self._rows[row.key] = row

    def get(self, policy: str, item: str, condition: str | None = None) -> Row | None:
        return self._rows.get((policy, condition, item))

    def rows(self, policy: str, condition: str | None = None) -> dict[str, Row]:
        """A policy's rows under a condition, by item."""
        return {row.id: row for row in self._rows.values() if row.policy == policy and row.condition == condition}

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Rows of an answers file, in order."""
    # Not splitlines: answers may hold other characters that it takes for ends of lines.
    return [Row.model_validate_json(line) for line in path.read_text().split("\n") if line]


def _drop_cut_line(path: Path) -> None:
    """Remove what a stopped run left of its last line, so that the next line does not continue it."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        path.write_bytes(text[:whole])
