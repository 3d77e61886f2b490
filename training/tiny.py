"""``python -m training.tiny``: from nothing to the weights of ``models/tiny-llava-dfmr``, on two CPU cores.

Interrupted runs go on where their last checkpoint was; a finished phase is not run again. ``--work`` holds the
checkpoints, the log and the loss plot.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from training import card, evaluate, language_phase, plot, runtime, vision_phase
from training.export import export, restore, restore_tower

MODEL = Path("models/tiny-llava-dfmr")
REPORT_SEED = 20261124


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.tiny", description="Train the embedded tiny LLaVA.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="checkpoints, log and plot")
    parser.add_argument("--target", type=Path, default=MODEL, help="where the model is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="one per CPU core")
    parser.add_argument("--vision-minutes", type=float, default=60.0, help="training time of the vision tower")
    parser.add_argument("--language-minutes", type=float, default=90.0, help="training time of the language model")
    parser.add_argument("--questions", type=int, default=100, help="held-out questions of each kind in the report")
    parser.add_argument(
        "--stage", choices=["all", "train", "export", "evaluate"], default="all", help="run only this part"
    )
    parser.add_argument(
        "--continue-from", type=Path, help="a written model whose language phase goes on, where --work has none yet"
    )
    parser.add_argument(
        "--after-minutes", type=float, default=60.0, help="minutes of the language phase that this model has had"
    )
    parser.add_argument(
        "--tower-from", type=Path, help="a written model whose vision tower is taken as it is; only language is trained"
    )
    parser.add_argument(
        "--only-factors",
        type=int,
        nargs="+",
        default=[],
        help="train language on single pictures at these factors only",
    )
    defaults = language_phase.Settings()
    parser.add_argument(
        "--first-pictures", type=int, default=defaults.first, help="drawn by each process before the language phase"
    )
    parser.add_argument("--fresh-pictures", type=int, default=defaults.fresh, help="drawn at each of its steps")
    parser.add_argument("--language-width", type=int, default=defaults.size.width, help="a multiple of 64")
    parser.add_argument("--language-layers", type=int, default=defaults.size.layers)
    parser.add_argument("--remarks", default="", help="a sentence for the model card about this run")
    return parser.parse_args()


def main() -> None:
    """Train both phases, export and evaluate."""
    arguments = _arguments()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "train"):
        vision = vision_phase.Settings(seed=arguments.seed, minutes=arguments.vision_minutes)
        language = language_phase.Settings(
            seed=arguments.seed,
            minutes=arguments.language_minutes,
            first=arguments.first_pictures,
            fresh=arguments.fresh_pictures,
            only=tuple(arguments.only_factors),
            size=language_phase.Size(arguments.language_width, arguments.language_layers),
        )
        if arguments.tower_from is not None:
            if not (work / "vision.pt").exists():
                restore_tower(arguments.tower_from, work)
        elif arguments.continue_from is None:
            runtime.launch(vision_phase.run, arguments.processes, work, vision)
        elif not (work / "language.pt").exists():
            restore(arguments.continue_from, work, arguments.after_minutes)
        runtime.launch(language_phase.run, arguments.processes, work, language)
    if arguments.stage in ("all", "export"):
        export(work, arguments.target)
        plot.plot(work / "log.csv", work / "loss.png")
        for name in ("log.csv", "loss.png"):
            shutil.copyfile(work / name, arguments.target / f"training-{name}")
    if arguments.stage in ("all", "evaluate"):
        _report(arguments.target, arguments.questions, arguments.remarks)


def _report(target: Path, questions: int, remarks: str) -> None:
    model = evaluate.load(target)
    accuracies = evaluate.evaluate(model, REPORT_SEED, questions, [evaluate.BLIND, 1, 2, 3, 4, 6, 8])
    evaluate.write_csv(target / "accuracy.csv", accuracies)
    card.write(target, accuracies, questions, REPORT_SEED, remarks)
    print(evaluate.table(accuracies))


if __name__ == "__main__":
    main()
