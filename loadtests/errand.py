"""What passes between a run and its Locust process. Light to import: Locust starts anew for every load."""

from pathlib import Path

from pydantic import BaseModel

HASTY_FACTOR = 6
"""Used only by users that leave before the headers that would tell them their tokens: the server counts pictures by
factor, so that theirs can be told from the others'."""


class Errand(BaseModel):
    """What the Locust process is told.

    Attributes:
        dfmr: the ``dfmr`` object of requests; empty for a server that does not know it.
        details: a row for each request in turn.
        pictures: data URLs, used in turn.
        again: whether they are sent again once all were; else each is a new file for ever.
        users: how many of each class.
        rate: requests a second of all users together; None has them ask again at once.
        ledger: where to write what came of it.
    """

    model: str
    dfmr: dict[str, object]
    details: list[list[str]]
    pictures: Path
    again: bool
    users: dict[str, int]
    rate: float | None
    ledger: Path
    seed: int = 0


class Answer(BaseModel):
    """One answer that was read to its end."""

    ttft: float
    itl: list[float]
    output_tokens: int
    prompt_tokens: int
    follow_up: bool


class Ledger(BaseModel):
    """What the users saw.

    Attributes:
        answers: those read to their end.
        original, kept: visual tokens, from the headers of all responses that began, whatever became of them.
        outcomes: how many requests ended how.
        surprises: what should not have happened, the first few.
        pictures: in requests that were answered.
    """

    answers: list[Answer] = []
    original: int = 0
    kept: int = 0
    outcomes: dict[str, int] = {}
    surprises: list[str] = []
    pictures: int = 0
