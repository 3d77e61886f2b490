"""A scenario's requests under a policy, as files for the ``custom_image`` data set of ``vllm bench serve``."""

import json
import random
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.pictures import Gallery, Kind
from loadtests.scenarios import Matrix, Policy
from server.policy import Detail

SIDE = 24
"""Rows and columns of LLaVA-1.5's feature map."""
_LETTERS = random.Random()
"""Of its own: ``vllm bench serve`` sets the seed of the module's generator, which would make texts repeat."""


@dataclass(frozen=True)
class Workload:
    """Requests on disk.

    Attributes:
        path: one JSON line for each request, in order.
        seen: for each request, whether its pictures were asked about before in this workload.
        visual_tokens: for each request, the tokens that the policy keeps of its pictures.
        pictures: in each request.
    """

    path: Path
    seen: tuple[bool, ...]
    visual_tokens: tuple[int, ...]
    pictures: int


@dataclass(frozen=True)
class Questions:
    """What is asked, whoever answers it."""

    requests: int
    pictures: int
    kinds: tuple[Kind, ...]
    text: int
    repeats: int = 1


def kept(policy: Policy, details: list[Detail]) -> int:
    """Visual tokens that are left of pictures of these details; a window at the edge counts whole."""
    return sum((-(-SIDE // policy.factor(detail))) ** 2 for detail in details)


def make(path: Path, questions: Questions, name: str, matrix: Matrix, gallery: Gallery) -> Workload:
    """Draw a policy's pictures and write its requests. Pictures and texts are new in every workload."""
    policy = matrix.policies[name]
    source = matrix.policies[policy.like] if policy.like else policy
    urls = gallery.urls(questions.kinds, policy.downscale)
    lines, seen, tokens = [], [], []
    pictures: list[str] = []
    for index in range(questions.requests):
        fresh = index % questions.repeats == 0
        details = source.details_of(index // questions.repeats, questions.pictures)
        length = kept(source, details)
        if policy.like:
            # The template puts a line break behind every picture.
            content = [_text(questions.text + length + questions.pictures)]
        else:
            if fresh:
                pictures = [next(urls) for _ in range(questions.pictures)]
            content = [_picture(url, detail) for url, detail in zip(pictures, details, strict=True)]
            content.append(_text(questions.text))
        lines.append(json.dumps({"content": content}))
        seen.append(not fresh)
        tokens.append(length)
    path.write_text("\n".join(lines) + "\n")
    return Workload(path, tuple(seen), tuple(tokens), 0 if policy.like else questions.pictures)


def _picture(url: str, detail: Detail) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


def _text(length: int) -> dict[str, Any]:
    """Random letters: bench models have one token for each, and no two texts share a prefix that a cache could hold."""
    return {"type": "text", "text": "".join(_LETTERS.choices(string.ascii_letters, k=length))}
