"""Whether an answer is right, by name. To add a scorer, enter it in `SCORERS` or pass ``--scorer module:function``."""

import importlib
import re
from collections.abc import Callable

from evals.benchmarks import gqa, mmbench, pope, vqa
from evals.items import Item

Scorer = Callable[[str, Item], float]
"""(answer, item) to a score between 0 and 1."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_EDGES = " \t\n.,;:!?\"'`*()[]"


def normalised(text: str) -> str:
    """Lower case, without articles, surrounding punctuation and repeated spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().strip(_EDGES)).split()).strip(_EDGES)


def exact(answer: str, item: Item) -> float:
    """1 if the normalised answer is one of the item's."""
    return float(normalised(answer) in {normalised(accepted) for accepted in item.answers})


def contains(answer: str, item: Item) -> float:
    """1 if one of the item's answers occurs in the answer as whole words: for models that answer in sentences."""
    words = f" {_words(answer)} "
    wanted = (_words(accepted) for accepted in item.answers)
    return float(any(f" {accepted} " in words for accepted in wanted if accepted))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "vqav2": vqa.score_vqav2,
    "textvqa": vqa.score_textvqa,
    "gqa": gqa.score,
    "pope": pope.score,
    "mmbench": mmbench.score,
}

SUMMARIES: dict[str, Callable[[list[tuple[str, Item]]], dict[str, float]]] = {
    "gqa": gqa.summary,
    "pope": pope.summary,
    "mmbench": mmbench.summary,
    "vqav2": vqa.summary_vqav2,
    "textvqa": vqa.summary_textvqa,
}
"""A benchmark's official figures besides accuracy, from (answer, item) pairs."""


def scorer(name: str) -> Scorer:
    """The scorer of that name, or the function that ``module:function`` names.

    Raises:
        ValueError: there is none.
    """
    if name in SCORERS:
        return SCORERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"unknown scorer {name!r}; there are {', '.join(SCORERS)}, or module:function")
    try:
        found: Scorer = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scorer {name!r}: {error}") from error
    return found
