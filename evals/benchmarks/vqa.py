"""VQAv2 and TextVQA: soft accuracy against ten people's answers, with the official normalisation of answers.

Sources of the rules: the VQA challenge's evaluation (visualqa.org/evaluation.html, GT-Vision-Lab/VQA, vqaEval.py) and
for TextVQA its EvalAI variant (facebookresearch/mmf, ``EvalAIAnswerProcessor``).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from evals.items import Item

PROMPT = "\nAnswer the question using a single word or phrase."
"""LLaVA-1.5's own, from the evaluation of its paper."""

_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've "
)
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def _restored() -> dict[str, str]:
    """Contractions by what is left of them when one apostrophe is forgotten, as in the official table."""
    table = {}
    for word in _CONTRACTIONS.split():
        for at, character in enumerate(word):
            if character == "'":
                table[word[:at] + word[at + 1 :]] = word
    return table


_RESTORED = _restored()


def without_punctuation(text: str) -> str:
    """The official treatment of punctuation.

    A mark that touches a space anywhere in the text is removed everywhere, as are all marks of a text that has a comma
    between digits; any other becomes a space. Periods go unless a digit follows.
    """
    out = text
    for mark in _PUNCTUATION:
        touches = mark + " " in text or " " + mark in text or _COMMA_IN_NUMBER.search(text) is not None
        out = out.replace(mark, "" if touches else " ")
    return _PERIOD.sub("", out)


def plain_words(text: str) -> str:
    """Lower case, numbers to ten as digits, no articles, apostrophes restored, single spaces."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalised_vqav2(answer: str) -> str:
    """A model's answer as the VQA challenge compares it."""
    return plain_words(without_punctuation(_one_line(answer)))


def normalised_textvqa(answer: str) -> str:
    """A model's or a person's answer as the TextVQA challenge compares it."""
    lowered = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(without_punctuation(_one_line(lowered)))


def soft_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """min(matches / 3, 1), averaged over leaving out each person in turn."""
    matches = sum(person == answer for person in accepted)
    shares = (min(1.0, (matches - (person == answer)) / 3) for person in accepted)
    return sum(shares) / len(accepted)


def score_vqav2(answer: str, item: Item) -> float:
    """Soft accuracy; people's answers lose their punctuation only where they differ, as in the official code."""
    accepted = list(item.answers)
    if len(set(accepted)) > 1:
        accepted = [without_punctuation(person) for person in accepted]
    return soft_accuracy(normalised_vqav2(answer), accepted)


def score_textvqa(answer: str, item: Item) -> float:
    """Soft accuracy with every answer normalised."""
    return soft_accuracy(normalised_textvqa(answer), [normalised_textvqa(person) for person in item.answers])


def summary_vqav2(answered: list[tuple[str, Item]]) -> dict[str, float]:
    """The official overall accuracy in per cent, rounded as the challenge does."""
    return {"accuracy (%)": round(100 * sum(score_vqav2(*pair) for pair in answered) / len(answered), 2)}


def summary_textvqa(answered: list[tuple[str, Item]]) -> dict[str, float]:
    """The official overall accuracy in per cent."""
    return {"accuracy (%)": round(100 * sum(score_textvqa(*pair) for pair in answered) / len(answered), 2)}


def load_vqav2(questions: Path, annotations: Path, images: Path) -> list[Item]:
    """``v2_OpenEnded_mscoco_val2014_questions.json`` and ``v2_mscoco_val2014_annotations.json``; kind: answer type."""
    asked = json.loads(questions.read_text())
    prefix = f"COCO_{asked.get('data_subtype', 'val2014')}_"
    known = {row["question_id"]: row for row in json.loads(annotations.read_text())["annotations"]}
    items = []
    for row in asked["questions"]:
        answers = known[row["question_id"]]
        items.append(
            Item(
                id=str(row["question_id"]),
                pictures=(str(images / f"{prefix}{row['image_id']:012d}.jpg"),),
                question=row["question"] + PROMPT,
                answers=tuple(person["answer"] for person in answers["answers"]),
                kind=answers["answer_type"],
                scorer="vqav2",
                group=str(row["image_id"]),
                benchmark="vqav2",
            )
        )
    return items


def load_textvqa(annotations: Path, images: Path) -> list[Item]:
    """``TextVQA_0.5.1_val.json`` with the pictures of ``train_images``."""
    return [
        Item(
            id=str(row["question_id"]),
            pictures=(str(images / f"{row['image_id']}.jpg"),),
            question=row["question"] + PROMPT,
            answers=tuple(row["answers"]),
            kind="textvqa",
            scorer="textvqa",
            group=str(row["image_id"]),
            benchmark="textvqa",
        )
        for row in json.loads(annotations.read_text())["data"]
    ]
