"""External programs that the tests of `deploy` run where they are installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "dfmr-server"


def tool(name: str) -> str:
    """Path of a program, on PATH or beside the interpreter; the test is skipped where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed: NOT CHECKED")
    return found


def run(name: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program; its output is kept for the assertion's message."""
    return subprocess.run([tool(name), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


def passes(name: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """Run a program that must succeed, and return what it printed."""
    result = run(name, *arguments, cwd=cwd)
    assert result.returncode == 0, f"{name} {' '.join(map(str, arguments))}\n{result.stdout}{result.stderr}"
    return result.stdout
