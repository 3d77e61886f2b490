"""A byte-level tokenizer whose merges are the words of the questions, and the chat template around it.

Any text can be encoded (unknown words fall back to bytes) and every digit is a token of its own, so numbers are read
digit by digit.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training import drawing, scenes

VOCABULARY = 640
PAD, BOS, EOS, IMAGE, SYSTEM, USER, ASSISTANT = (
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
CONTEXT = 4096

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] in ['image', 'image_url'] %}"
    "{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""OpenAI-style messages; a message's pictures come first, each followed by a line break, as in training."""


def _corpus() -> list[str]:
    names = [*drawing.SHAPES, *drawing.COLORS, *drawing.DEFECTS, "first", "second"]
    lines = [phrase.format(name) for phrases in scenes.PHRASES.values() for phrase in phrases for name in names]
    answers = [*names, *drawing.PATTERNS, *scenes.WORDS, "yes", "no", "top left", "top right", "bottom left"]
    common = "Please describe the picture and answer the question in one word. The number is on the left of it."
    return [*lines, *(answer for answer in [*answers, "bottom right"] for _ in range(20)), *[common] * 20, "\n"]


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS, IMAGE, SYSTEM, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
