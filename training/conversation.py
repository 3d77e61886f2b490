"""A conversation to tokens by the chat template of the checkpoint: answers are marked, pictures get their room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from training.llava_json import PLACEHOLDER, Sample, Turn
from training.packing import IGNORED


class Encoded(NamedTuple):
    """Token ids, and for each of them itself where it belongs to an answer, else ``IGNORED``."""

    ids: list[int]
    labels: list[int]


class Encoder:
    """Writes conversations as a checkpoint's processor does; ``processor`` is a transformers ``LlavaProcessor``.

    Raises:
        ValueError: the tokenizer cannot tell where in the text a token stands, or there is no chat template.
    """

    def __init__(self, processor: Any, longest: int) -> None:
        self._processor, self._tokenizer, self._longest = processor, processor.tokenizer, longest
        if not self._tokenizer.is_fast:
            raise ValueError("the checkpoint needs a fast tokenizer (tokenizer.json): answers are found by their place")
        if processor.chat_template is None and self._tokenizer.chat_template is None:
            raise ValueError("the checkpoint has no chat template, so how its prompts are written is not known")
        self._image = int(self._tokenizer.convert_tokens_to_ids(processor.image_token))
        self._bos, self._eos = self._tokenizer.bos_token, self._tokenizer.eos_token

    def encode(self, sample: Sample, tokens: Sequence[int]) -> Encoded:
        """The conversation with ``tokens[i]`` placeholders for its i-th picture, cut off at the longest length.

        Only answers are labelled, each up to its end-of-sequence token. A template that writes none gets one behind the
        last answer, so that the model still learns to stop.

        Raises:
            ValueError: the template does not write one placeholder a picture or does not let a conversation grow at its
                end, or the pictures do not fit; the message names the sample.
        """
        text, answers = self._text(sample)
        ends = bool(self._eos) and self._eos not in text[answers[-1][0] :]
        if ends:
            text = text[: answers[-1][1]]
        special = not (self._bos and text.startswith(self._bos))
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, labels = self._expand(sample, found["input_ids"], found["offset_mapping"], answers, tokens)
        if special and self._bos and self._tokenizer("", add_special_tokens=True)["input_ids"]:
            ids, labels = [self._tokenizer.bos_token_id, *ids], [IGNORED, *labels]
        if ends:
            ids, labels = [*ids, self._tokenizer.eos_token_id], [*labels, self._tokenizer.eos_token_id]
        if self._image in ids[self._longest :]:
            raise ValueError(f"{sample.name}: its pictures do not fit into {self._longest} tokens; raise --max-length")
        return Encoded(ids[: self._longest], labels[: self._longest])

    def _text(self, sample: Sample) -> tuple[str, list[tuple[int, int]]]:
        """The whole conversation as text, and each answer's place in it (start, end) in characters."""
        messages = [_message(turn) for turn in sample.turns]
        text: str = self._processor.apply_chat_template(messages, tokenize=False)
        answers = []
        for index, turn in enumerate(sample.turns):
            if turn.role != "assistant":
                continue
            opening = self._processor.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
            until = self._processor.apply_chat_template(messages[: index + 1], tokenize=False)
            if not until.startswith(opening) or not text.startswith(until.rstrip()):
                raise ValueError(f"{sample.name}: the chat template rewrites earlier turns; it cannot be trained on")
            answer = until[len(opening) :]
            if self._eos and self._eos in answer:
                length = answer.index(self._eos) + len(self._eos)
            else:
                length = len(answer.rstrip())
            answers.append((len(opening), len(opening) + length))
        return text, answers

    def _expand(
        self,
        sample: Sample,
        ids: list[int],
        places: list[tuple[int, int]],
        answers: list[tuple[int, int]],
        tokens: Sequence[int],
    ) -> tuple[list[int], list[int]]:
        if (written := ids.count(self._image)) != len(tokens):
            raise ValueError(
                f"{sample.name}: the chat template wrote {written} placeholders for {len(tokens)} pictures"
            )
        left = iter(tokens)
        expanded: list[int] = []
        labels: list[int] = []
        for token, (start, end) in zip(ids, places, strict=True):
            count = next(left) if token == self._image else 1
            answered = any(start < last and end > first for first, last in answers)
            expanded += [token] * count
            labels += [token if answered else IGNORED] * count
        return expanded, labels


def _message(turn: Turn) -> dict[str, object]:
    """OpenAI-style parts, pictures where they stand in the text."""
    parts: list[dict[str, str]] = []
    for index, text in enumerate(turn.text.split(PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
        if text := text.strip("\n") if PLACEHOLDER in turn.text else text:
            parts.append({"type": "text", "text": text})
    return {"role": turn.role, "content": parts}
