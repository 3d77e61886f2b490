"""Writes generated files, or says which of them have drifted from what would be written."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write_or_check(files: Mapping[Path, str], *, check: bool) -> list[str]:
    """Write every file, or with ``check`` none.

    Returns:
        with ``check``, one line for each file that is missing or differs.
    """
    drifted = []
    for path, text in files.items():
        if path.is_file() and path.read_text() == text:
            continue
        if check:
            drifted.append(f"{path.relative_to(ROOT)} is not what would be generated")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return drifted


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The command line that the generators share."""
    command = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    command.add_argument("--check", action="store_true", help="write nothing; fail if a file would change")
    return command


def report(module: str, complaints: Sequence[str]) -> int:
    """Print what is wrong and how it is mended; the exit status."""
    for complaint in complaints:
        print(complaint)
    if complaints:
        print(f"run `python -m {module}` and commit what it writes, or mend the query")
    return int(bool(complaints))
