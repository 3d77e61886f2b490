"""Phase two: projector and language model learn to answer from pooled feature maps; the vision tower is frozen.

Because the tower no longer changes, every picture is encoded once and its 24 x 24 features are kept in a store; a step
takes some of them, pools them by that step's factor and packs several questions behind each. Pooling stands where the
compressor stands in serving: on the feature map, before the projector.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from training import runtime, scenes
from training.canvas import GRID
from training.packing import IGNORED, Packed, Packer
from training.regions import BLOCKS, block_deviations, pool_blocks
from training.scenes import Question, Scene
from training.tokenizer import CONTEXT, build
from training.vision_phase import HIDDEN, VisionTower, pixels_of, pool

ROWS = 576
"""Vocabulary rows of the language model: the tokenizer's, rounded up."""

BATCH = {1: 6, 2: 10, 3: 14, 4: 14, 6: 16, 8: 16}
EARLY = {1: 0.08, 2: 0.45, 3: 0.26, 4: 0.15, 6: 0.03, 8: 0.03}
LATE = {1: 0.30, 2: 0.34, 3: 0.16, 4: 0.11, 6: 0.05, 8: 0.04}
"""Samples a step and process by pooling factor, and the share of steps that each factor gets."""

PAIRED = ((0.5, 0.06), (0.75, 0.16), (1.0, 0.30))
"""The share of steps that show pairs of pictures, up to that progress. Pairs at full resolution come last: their 1152
tokens make the dearest steps."""

REGIONS_FROM, REGIONS = 0.75, 0.30
"""From this progress on, the share of single-picture steps in which every block of the map has its own factor."""

AVERAGED_EVERY = 8
"""Steps between two averagings of the processes' weights: they need not wait for each other at every step."""

SHOWN = {"print": 0.34, "shapes": 0.28, "mixed": 0.22, "gauge": 0.09, "surface": 0.07}
"""The share of pictures of each family: print and counting take longest to learn."""

KEPT = {"background": 0.3, "pattern": 0.4, "shape_color": 0.6, "color_shape": 0.6, "where": 0.6}
"""The chance that a question of a frequent kind is asked; the others always are."""


class Size(NamedTuple):
    """The language model's hidden size and layers; its MLP is twice as wide."""

    width: int = 256
    layers: int = 3


DEFAULT_SIZE = Size()


def text_config(size: Size) -> LlamaConfig:
    """The language model: Llama's, small, with heads of 64."""
    return LlamaConfig(
        vocab_size=ROWS,
        hidden_size=size.width,
        intermediate_size=2 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        num_key_value_heads=size.width // 64,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


class Projector(nn.Module):
    """LLaVA-1.5's two-layer projector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(HIDDEN, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., HIDDEN) to (..., width)."""
        projected: Tensor = self.linear_2(nn.functional.gelu(self.linear_1(features)))
        return projected


class LanguagePhaseModel(nn.Module):
    """Projector and language model, in bf16."""

    def __init__(self, size: Size = DEFAULT_SIZE) -> None:
        super().__init__()
        config = text_config(size)
        config._attn_implementation = "eager_bf16"
        self.projector = Projector(size.width)
        self.llama = LlamaForCausalLM(config)
        self.to(torch.bfloat16)

    def forward(self, maps: list[Tensor], packed: Packed, image_id: int) -> tuple[Tensor, Tensor]:
        """Logits (answers' tokens, vocabulary) and their targets.

        ``maps`` holds the kept tokens of each sample's first, second, ... picture: (samples, tokens, HIDDEN).
        """
        embedded = self.llama.model.embed_tokens(packed.ids)
        if maps:
            visual = self.projector(torch.cat(maps, 1))
            embedded = embedded.masked_scatter((packed.ids == image_id)[..., None], visual)
        hidden = self.llama.model(
            inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
        ).last_hidden_state
        chosen = packed.targets != IGNORED
        return self.llama.lm_head(hidden[chosen]).float(), packed.targets[chosen]


def exact(logits: Tensor, packed: Packed) -> list[list[bool]]:
    """Per sample and question: would greedy decoding give exactly the answer? (All its tokens come first.)"""
    right = torch.zeros_like(packed.targets, dtype=torch.bool)
    right[packed.targets != IGNORED] = logits.argmax(-1) == packed.targets[packed.targets != IGNORED]
    return [
        [bool(row[first:last].all()) for first, last in owner] for row, owner in zip(right, packed.owner, strict=True)
    ]


class Store:
    """The last ``capacity`` pictures of a process: features (capacity, 24, 24, HIDDEN) in bf16 and what is asked."""

    def __init__(self, tower: VisionTower, key: str, capacity: int) -> None:
        self._tower, self._key, self.drawn = tower, key, 0
        self.features = torch.zeros(capacity, GRID, GRID, HIDDEN, dtype=torch.bfloat16)
        self.scenes: list[Scene] = []

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draw and encode ``count`` new pictures in place of the oldest."""
        keys = [f"{self._key}/{self.drawn + index}" for index in range(count)]
        families = [Random(key).choices(list(SHOWN), list(SHOWN.values()))[0] for key in keys]
        fresh = [scenes.scene("train", key, family) for key, family in zip(keys, families, strict=True)]
        maps = self._tower(pixels_of([np.asarray(found.picture) for found in fresh]))
        for found, features in zip(fresh, maps, strict=True):
            place = self.drawn % len(self.features)
            self.features[place] = features
            bare = found._replace(labels={})
            if place < len(self.scenes):
                self.scenes[place] = bare
            else:
                self.scenes.append(bare)
            self.drawn += 1


class Step(NamedTuple):
    """What one step shows: kept tokens (samples, tokens, HIDDEN) by picture, the questions and the factors.

    Without factors the pictures are not shown, or not pooled by one factor alone: such answers are not logged.
    """

    maps: list[Tensor]
    questions: list[list[Question]]
    factors: list[int]


def _some(random: Random, questions: list[Question], most: int) -> list[Question]:
    chosen = [question for question in questions if random.random() < KEPT.get(question.kind, 1.0)]
    return random.sample(chosen, min(most, len(chosen))) or questions[:1]


def single_step(random: Random, store: Store, factor: int) -> Step:
    """Single pictures at one factor."""
    places = random.sample(range(len(store.scenes)), BATCH[factor])
    questions = [_some(random, store.scenes[place].questions, 8) for place in places]
    return Step([pool(store.features[places], factor).flatten(1, 2)], questions, [factor])


def pair_step(random: Random, store: Store, factors: list[int]) -> Step:
    """Pairs of pictures, the first at ``factors[0]``, the second at ``factors[1]``."""
    able = [
        place
        for place, found in enumerate(store.scenes)
        if any(thing.family in ("shape", "number") for thing in found.things)
    ]
    couples: list[list[int]] = []
    questions: list[list[Question]] = []
    while len(couples) < BATCH[min(factors)] * 2 // 3:
        couple = random.sample(able, 2)
        asked = scenes.pair_questions(random, store.scenes[couple[0]], store.scenes[couple[1]])
        if asked:
            couples.append(couple)
            questions.append(asked)
    maps = [pool(store.features[[couple[i] for couple in couples]], factors[i]).flatten(1, 2) for i in (0, 1)]
    return Step(maps, questions, factors)


def regions_step(shared: Random, own: Random, store: Store) -> Step:
    """Single pictures whose blocks each have a factor of their own, as many of each factor in every picture.

    Half of the time the finer factors go to the blocks that vary most, as the compressor deals them out, and else
    to any.
    """
    block = shared.choice(list(BLOCKS))
    blocks = (GRID // block) ** 2
    dealt = sorted(shared.choices(BLOCKS[block], [shared.random() + 0.1 for _ in BLOCKS[block]], k=blocks))
    ranked = shared.random() < 0.5
    places = own.sample(range(len(store.scenes)), BATCH[2])
    kept = []
    for features in store.features[places]:
        order = block_deviations(features, block).argsort(descending=True).tolist()
        if not ranked:
            own.shuffle(order)
        factors = [0] * blocks
        for index, factor in zip(order, dealt, strict=True):
            factors[index] = factor
        kept.append(pool_blocks(features, block, factors))
    questions = [_some(own, store.scenes[place].questions, 8) for place in places]
    return Step([torch.stack(kept)], questions, [])


def draw_step(shared: Random, own: Random, store: Store, progress: float, only: tuple[int, ...] = ()) -> Step:
    """The next step. ``shared`` is the same in every process, so that all of them have as much to do.

    ``only``: as in ``Settings``.
    """
    if only:
        return single_step(own, store, shared.choice(only))
    shares = EARLY if progress < 0.5 else LATE
    factors = shared.choices(list(shares), list(shares.values()), k=2)
    paired = next(share for until, share in PAIRED if progress <= until)
    if shared.random() < 0.03:
        return Step([], single_step(own, store, 8).questions, [])
    if shared.random() < paired:
        return pair_step(own, store, factors if progress > PAIRED[1][0] else [factors[0], max(factors[1], 2)])
    if progress > REGIONS_FROM and shared.random() < REGIONS:
        return regions_step(shared, own, store)
    return single_step(own, store, factors[0])


class Settings(NamedTuple):
    """How the phase is run; ``capacity``, ``first`` and ``fresh`` are pictures a process.

    ``only``: where there is any, each step shows single pictures at one of these factors and nothing else. With 1 alone
    the model never sees a pooled map: what adaptation (``training.adapt``) starts from in its demonstration.

    ``fresh`` pictures join at every step: with one, answers were learnt by heart (numbers read 0.97 in training, 0.72
    on held-out pictures).
    """

    seed: int = 0
    minutes: float = 60.0
    capacity: int = 5000
    first: int = 800
    fresh: int = 3
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    checkpoint_minutes: float = 2.0
    only: tuple[int, ...] = ()
    size: Size = DEFAULT_SIZE


def run(rank: int, processes: int, work: Path, settings: Settings) -> None:
    """Train from ``work/vision.pt``, going on from ``work/language.pt`` if it is there; every process runs this."""
    torch.manual_seed(settings.seed)
    vision = runtime.load(work / "vision.pt")
    if vision is None:
        raise FileNotFoundError("the language phase needs the vision phase's checkpoint vision.pt")
    tower = VisionTower()
    tower.load_state_dict(vision["tower"])
    packer, model = Packer(build()), LanguagePhaseModel(settings.size)
    path, step, clock = work / "language.pt", 0, runtime.Clock()
    saved = runtime.load(path)
    if saved is not None:
        model.load_state_dict(saved["model"])
        step, clock = saved["step"], runtime.Clock(saved["seconds"])
    optimizer = runtime.MixedOptimizer(model.named_parameters(), settings.muon_rate, settings.adam_rate)
    if saved is not None and "optimizer" in saved:
        optimizer.load(saved["optimizer"])
    store = Store(tower, f"language/{settings.seed}/{rank}/{step}", settings.capacity)
    while store.drawn < settings.first:
        store.add(16)
    progress, saved_at = clock.elapsed / (60 * settings.minutes), clock.elapsed
    seen: dict[str, list[float]] = {}
    while progress < 1:
        shared, own = Random(f"{settings.seed}/{step}"), Random(f"{settings.seed}/{rank}/{step}")
        store.add(settings.fresh)
        drawn = draw_step(shared, own, store, progress, settings.only)
        packed = packer.pack(drawn.questions, [each.shape[1] for each in drawn.maps], shared.random() < 0.12)
        logits, targets = model(drawn.maps, packed, packer.image)
        loss = nn.functional.cross_entropy(logits, targets)
        loss.backward()
        optimizer.local_step(runtime.learning_rate(progress))
        step += 1
        seen.setdefault("loss", []).append(float(loss.detach()))
        if drawn.factors:
            _count(seen, drawn, exact(logits.detach(), packed))
        if step % AVERAGED_EVERY:
            continue
        seconds = optimizer.average([clock.tick()])[0]
        progress = seconds / (60 * settings.minutes)
        if rank == 0 and step % 80 == 0:
            runtime.report(work, "language", step, seconds, {name: float(np.mean(v)) for name, v in seen.items()})
            seen.clear()
        if rank == 0 and (progress >= 1 or seconds - saved_at > 60 * settings.checkpoint_minutes):
            saved_at = seconds
            weights = {"optimizer": optimizer.state(), "step": step, "seconds": seconds, "model": model.state_dict()}
            runtime.save(path, weights)


def _count(seen: dict[str, list[float]], step: Step, right: list[list[bool]]) -> None:
    label = "+".join(str(factor) for factor in step.factors) if len(step.factors) == 1 else "2p"
    for asked, results in zip(step.questions, right, strict=True):
        for question, result in zip(asked, results, strict=True):
            seen.setdefault(f"{question.kind}@{label}", []).append(float(result))
