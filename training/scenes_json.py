"""``python -m training.scenes_json FOLDER``: training pictures and their questions as LLaVA-format JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tqdm import tqdm

from training import llava_json, scenes
from training.language_phase import SHOWN


def conversations(seed: int, pictures: int) -> Iterator[llava_json.Written]:
    """Pictures of the training stream, in the language phase's shares, each with up to eight of its questions."""
    for index in range(pictures):
        random = Random(f"conversations/{seed}/{index}")
        family = random.choices(list(SHOWN), list(SHOWN.values()))[0]
        found = scenes.scene("train", f"conversations/{seed}/{index}", family)
        asked = random.sample(found.questions, min(8, len(found.questions)))
        yield llava_json.Written(found.picture, [(question.text, question.answer) for question in asked])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.scenes_json", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bar = tqdm(conversations(given.seed, given.pictures), total=given.pictures, unit="picture", disable=None)
    print(llava_json.write(given.folder, bar))


if __name__ == "__main__":
    main()
