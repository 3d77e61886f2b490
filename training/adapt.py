"""``python -m training.adapt MODEL``: fine-tune a LLaVA checkpoint on pooled feature maps, so that it bears them.

The vision tower is frozen; the projector is trained whole and the language model through LoRA. Each step draws a
pooling factor, or one for each picture, and pools the tower's features as the server does before the projector. The
data are LLaVA-format JSON. ``--out`` holds the log, the loss plot, a checkpoint to go on from, and in ``model`` the
merged weights, which transformers and vLLM load as they load the original.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dfmr_kernels.decide import tokens_after
from server.encoding.preprocess import Preprocessor
from training import llava_json, plot, runtime
from training.adapter import Adapter, Batch, pad
from training.conversation import Encoder
from training.packing import IGNORED

LOG_EVERY, SAVE_EVERY = 10, 100


class Settings(NamedTuple):
    """What a run is; a run that goes on must be the same. ``batch`` is samples a forward pass."""

    model: str
    data: str
    images: str
    factors: tuple[int, ...] = (1, 2, 3, 4)
    mixed: float = 0.25
    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_rate: float = 2e-4
    projector_rate: float = 1e-4
    max_length: int = 4096
    dtype: str = "auto"
    seed: int = 0


class Passes(Dataset[Batch]):
    """The forward passes of a run by number: which samples, at which factors. The same number gives the same batch."""

    def __init__(self, samples: list[llava_json.Sample], adapter: Adapter, settings: Settings) -> None:
        self._samples, self._settings, self._grid = samples, settings, adapter.grid
        self._encoder = Encoder(adapter.processor, settings.max_length)
        self._preprocess = Preprocessor.from_processor(adapter.processor.image_processor)
        self._pad = int(adapter.processor.tokenizer.pad_token_id or 0)
        self._epoch, self._order = -1, list[int]()

    def __len__(self) -> int:
        return self._settings.steps * self._settings.accumulate

    def __getitem__(self, number: int) -> Batch:
        random, settings = Random(f"{self._settings.seed}/pass/{number}"), self._settings
        chosen = [self._sample(number * settings.batch + place) for place in range(settings.batch)]
        pictures = [picture for sample in chosen for picture in sample.pictures]
        one = random.choice(settings.factors)
        mixed = random.random() < settings.mixed
        factors = [random.choice(settings.factors) if mixed else one for _ in pictures]
        left = iter(factors)
        encoded = [
            self._encoder.encode(sample, [tokens_after(self._grid, next(left)) for _ in sample.pictures])
            for sample in chosen
        ]
        return Batch(
            ids=pad([found.ids for found in encoded], self._pad),
            mask=pad([[1] * len(found.ids) for found in encoded], 0),
            labels=pad([found.labels for found in encoded], IGNORED),
            pixels=self._pixels(pictures),
            factors=factors,
        )

    def _sample(self, place: int) -> llava_json.Sample:
        epoch, index = divmod(place, len(self._samples))
        if epoch != self._epoch:
            order = list(range(len(self._samples)))
            Random(f"{self._settings.seed}/epoch/{epoch}").shuffle(order)
            self._epoch, self._order = epoch, order
        return self._samples[self._order[index]]

    def _pixels(self, pictures: list[Path]) -> Tensor:
        """(pictures, 3, height, width), normalised."""
        made = self._preprocess
        if not pictures:
            return torch.zeros(0, 3, made.height, made.width)
        raw = []
        for path in pictures:
            with Image.open(path) as picture:
                raw.append(torch.from_numpy(made(picture)))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (made.mean, made.std))
        return (torch.stack(raw).float() * made.scale - mean) / std


class Run:
    """A run in a folder: trains, logs, and keeps what it needs to go on."""

    def __init__(self, out: Path, settings: Settings, resume: bool, checkpointing: bool = False) -> None:
        """Load everything.

        Raises:
            ValueError: the data are not in LLaVA's format or do not fit the model, the folder holds a run already and
                ``resume`` is not said, or that run was another one.
        """
        self.out, self.settings, self.step = out, settings, 0
        saved = runtime.load(out / "checkpoint.pt")
        if saved is not None and not resume:
            raise ValueError(f"{out} holds a run already: go on with --resume, or name another folder")
        if saved is not None and (changed := _changes(json.loads(saved["settings"]), settings)):
            raise ValueError(f"{out} holds another run; it differs in {', '.join(changed)}")
        samples = llava_json.read(Path(settings.data), Path(settings.images))
        torch.manual_seed(settings.seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
        self.adapter = Adapter(
            settings.model,
            settings.lora_rank,
            settings.lora_alpha,
            settings.lora_dropout,
            getattr(torch, dtype),
            device,
        )
        if checkpointing:
            self.adapter.llava.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.passes = Passes(samples, self.adapter, settings)
        named = self.adapter.trained()
        projector = [value for name, value in named.items() if "multi_modal_projector" in name]
        lora = [value for name, value in named.items() if "multi_modal_projector" not in name]
        self._rates = (settings.lora_rate, settings.projector_rate)
        self._optimizer = torch.optim.AdamW(
            [{"params": lora}, {"params": projector}], lr=settings.lora_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self._clock = runtime.Clock(saved["seconds"] if saved else 0.0)
        if saved is not None:
            self._go_on(saved, named)

    def _go_on(self, saved: dict[str, Any], named: dict[str, nn.Parameter]) -> None:
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(saved["trained"][name])
        self._optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        self.step = saved["step"]

    def _save(self) -> None:
        runtime.save(
            self.out / "checkpoint.pt",
            {
                "settings": json.dumps(self.settings._asdict()),
                "trained": {name: value.detach() for name, value in self.adapter.trained().items()},
                "optimizer": self._optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "step": self.step,
                "seconds": self._clock.elapsed,
            },
        )

    def train(self, workers: int = 0, keep_every: int = 0, until: int | None = None) -> None:
        """Train to the last step, or to step ``until``; every ``keep_every`` steps the merged model is written too."""
        settings, last = self.settings, min(until or self.settings.steps, self.settings.steps)
        self.out.mkdir(parents=True, exist_ok=True)
        self.adapter.model.train()
        self.adapter.llava.model.vision_tower.eval()
        numbers = range(self.step * settings.accumulate, last * settings.accumulate)
        loader: DataLoader[Batch] = DataLoader(self.passes, batch_size=None, sampler=numbers, num_workers=workers)
        batches, seen = iter(loader), dict[str, list[float]]()
        with tqdm(total=settings.steps, initial=self.step, unit="step", disable=None) as bar:
            while self.step < last:
                self._update(batches, seen)
                self._clock.tick()
                self.step += 1
                bar.update()
                if self.step % LOG_EVERY == 0 or self.step == last:
                    means = {name: sum(values) / len(values) for name, values in seen.items()}
                    runtime.log(self.out, "adapt", self.step, self._clock.elapsed, means)
                    bar.set_postfix(loss=f"{means['loss']:.3f}")
                    seen.clear()
                if self.step % SAVE_EVERY == 0 or self.step == last:
                    self._save()
                if keep_every and self.step % keep_every == 0:
                    self.adapter.write(self.out / f"step-{self.step}", list(settings.factors))

    def _update(self, batches: Any, seen: dict[str, list[float]]) -> None:
        scale = runtime.learning_rate(self.step / self.settings.steps)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        for _ in range(self.settings.accumulate):
            batch = next(batches)
            losses, _ = self.adapter.losses(batch)
            loss = losses.sum() / max(1, len(losses))
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"the loss is not finite at step {self.step}; lower the learning rates")
            (loss / self.settings.accumulate).backward()
            for name in ["loss", *({f"loss@{batch.factors[0]}"} if len(set(batch.factors)) == 1 else ())]:
                seen.setdefault(name, []).append(float(loss.detach()))
            seen.setdefault("visual tokens", []).append(float((batch.ids == self.adapter.image_id).sum()))
        torch.nn.utils.clip_grad_norm_(self.adapter.trained().values(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _changes(before: dict[str, Any], settings: Settings) -> list[str]:
    now = json.loads(json.dumps(settings._asdict()))
    return [name for name, value in now.items() if before.get(name) != value]


def _factors(text: str) -> tuple[int, ...]:
    try:
        factors = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, not {text!r}") from None
    if factors[0] < 1 or factors[-1] > 64:
        raise argparse.ArgumentTypeError("pooling factors are from 1 to 64")
    return factors


def _parser() -> argparse.ArgumentParser:
    default = Settings("", "", "")
    parser = argparse.ArgumentParser(prog="python -m training.adapt", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a LLaVA checkpoint: a folder or a hub name")
    parser.add_argument("--data", required=True, help="LLaVA-format JSON")
    parser.add_argument("--images", required=True, help="the folder that its pictures' paths start from")
    parser.add_argument("--out", required=True, type=Path, help="log, plot, checkpoint and the merged model")
    parser.add_argument("--factors", type=_factors, default=default.factors, help="pooling factors, as 1,2,3,4")
    parser.add_argument(
        "--mixed", type=float, default=default.mixed, help="share of steps in which each picture has its own factor"
    )
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch", type=int, default=default.batch, help="samples a forward pass")
    parser.add_argument("--accumulate", type=int, default=default.accumulate, help="forward passes a step")
    parser.add_argument("--lora-rank", type=int, default=default.lora_rank)
    parser.add_argument("--lora-alpha", type=int, default=default.lora_alpha)
    parser.add_argument("--lora-dropout", type=float, default=default.lora_dropout)
    parser.add_argument("--lora-rate", type=float, default=default.lora_rate, help="peak learning rate of LoRA")
    parser.add_argument("--projector-rate", type=float, default=default.projector_rate, help="and of the projector")
    parser.add_argument("--max-length", type=int, default=default.max_length, help="longest conversation in tokens")
    parser.add_argument(
        "--dtype",
        choices=["auto", "bfloat16", "float32"],
        default=default.dtype,
        help="of the frozen weights; auto: bfloat16 on a GPU, else float32",
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures; a GPU wants some")
    parser.add_argument("--keep-every", type=int, default=0, help="also write the merged model every so many steps")
    parser.add_argument("--adapter", action="store_true", help="write LoRA and projector alone too, as PEFT does")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    given = _parser().parse_args(arguments)
    settings = Settings(**{name: getattr(given, name) for name in Settings._fields})
    try:
        run = Run(given.out, settings, given.resume, given.gradient_checkpointing)
        trained = sum(parameter.numel() for parameter in run.adapter.trained().values())
        print(f"training {trained / 1e6:.2f} M parameters at factors {', '.join(map(str, settings.factors))}")
        run.train(given.workers, given.keep_every)
    except (ValueError, FloatingPointError) as error:
        raise SystemExit(f"training.adapt: {error}") from error
    run.adapter.write(given.out / "model", list(settings.factors))
    if given.adapter:
        run.adapter.write_adapter(given.out / "adapter")
    plot.plot(given.out / "log.csv", given.out / "loss.png")
    print(f"wrote {given.out / 'model'}; its tau is not calibrated for these factors yet: dfmr-calibrate finds it")


if __name__ == "__main__":
    main()
