import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
sys.modules["triton"] = None
import torch, dfmr_kernels
assert dfmr_kernels.reduce(torch.zeros(1, 4, 4, 2), [1, 2], [[0.0, 1.0]]).factors == [2]
assert not {"vllm", "server", "transformers", "fastapi"} & {name.split(".")[0] for name in sys.modules}
"""


def test_the_package_needs_neither_triton_nor_the_server() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], check=True)
