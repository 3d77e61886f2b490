"""Question and answer tokens of a batch: one sequence a picture, several questions in it.

Mostly the questions of a picture do not see each other (block-diagonal attention, positions start again behind the
pictures), which is many single-turn conversations for the price of one reading of the picture. The rest are ordinary
conversations of several turns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.scenes import Question
from training.tokenizer import ASSISTANT, BOS, EOS, IMAGE, PAD, USER

IGNORED = -100
MASKED = -1e9


class Packed(NamedTuple):
    """ids, positions, targets: (sequences, tokens), int64; mask: additive (sequences, 1, tokens, tokens), bf16.

    ``owner`` holds, per sequence and question, the positions that predict its answer: (first, last + 1).
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor
    owner: list[list[tuple[int, int]]]


class Packer:
    """Turns questions into token sequences; remembers what it has encoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.pad, self.bos, self.eos, self.image, self.user, self.assistant = (
            int(tokenizer.convert_tokens_to_ids(token)) for token in (PAD, BOS, EOS, IMAGE, USER, ASSISTANT)
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        if text not in self._known:
            self._known[text] = list(self._tokenizer.encode(text, add_special_tokens=False))
        return self._known[text]

    def prefix(self, image_tokens: list[int]) -> list[int]:
        """The tokens before the first question: one run of placeholders, then a line break, for each picture."""
        ids = [self.bos, self.user]
        for count in image_tokens:
            ids += [self.image] * count + self.encode("\n")
        return ids

    def pack(self, questions: list[list[Question]], image_tokens: list[int], turns: bool = False) -> Packed:
        """Sequences for ``questions[i]`` about the i-th sample, each of whose pictures takes that many tokens.

        ``turns``: one conversation of several turns rather than independent questions.
        """
        start = self.prefix(image_tokens)
        rows = [self._sequence(asked, len(start), turns) for asked in questions]
        longest = len(start) + max(len(row[0]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        ids[:, : len(start)] = torch.tensor(start)
        positions = torch.arange(longest).repeat(len(rows), 1)
        targets = torch.full((len(rows), longest), IGNORED)
        block = torch.full((len(rows), longest), -1)
        block[:, : len(start)] = 0
        for index, (tokens, places, answers, blocks, _) in enumerate(rows):
            window = slice(len(start), len(start) + len(tokens))
            ids[index, window], positions[index, window] = torch.tensor(tokens), torch.tensor(places)
            targets[index, window.start - 1 : window.stop - 1] = torch.tensor(answers)
            block[index, window] = torch.tensor(blocks)
        order = torch.arange(longest)
        causal = order[:, None] >= order[None]
        seen = causal & ((block[:, :, None] == block[:, None]) | (block[:, None] == 0))
        mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, MASKED)
        return Packed(ids, positions, targets, mask[:, None], [row[4] for row in rows])

    def _sequence(
        self, asked: list[Question], start: int, turns: bool
    ) -> tuple[list[int], list[int], list[int], list[int], list[tuple[int, int]]]:
        """Tokens behind the prefix with their positions, shifted targets, blocks and the answers' places."""
        tokens: list[int] = []
        places: list[int] = []
        answers: list[int] = []
        blocks: list[int] = []
        owner: list[tuple[int, int]] = []
        for index, question in enumerate(asked):
            opening = ([self.user] if turns and index else []) + self.encode(question.text) + [self.assistant]
            answer = [*self.encode(question.answer), self.eos]
            length, offset = len(opening) + len(answer), len(tokens) if turns else 0
            places += range(start + offset, start + offset + length)
            tokens += opening + answer
            answers += [IGNORED] * len(opening) + answer
            blocks += [0 if turns else index + 1] * length
            end = start + len(tokens) - 1
            owner.append((end - len(answer), end))
        return tokens, places, answers, blocks, owner
