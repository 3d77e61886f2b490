import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def test_kernels_compile_for_hopper_without_spills() -> None:
    """Other targets: `python -m dfmr_kernels.aot`, which takes a minute and ends with status 1 on spills as well."""
    command = [sys.executable, "-m", "dfmr_kernels.aot", "--targets", "90", "--cases", "llava-1.5-bf16"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if "sm_90" in line]
    assert [row[2] for row in rows] == ["pool", "sigma"]
    assert [row[-1] for row in rows] == ["0", "0"]
