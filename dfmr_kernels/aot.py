"""Compile the kernels for GPUs that are not here, and print what they use: `python -m dfmr_kernels.aot`.

For every target and encoder the table gives registers per thread, shared memory per program and local memory per
thread, which is where spilled registers go, as `cuobjdump` reads them from the cubin. A second table sets the bytes
that the tiling moves beside the least that any method must: the map read once, the outputs written once. Ends with
status 1 if anything spills. Needs triton, whose wheel brings ptxas and cuobjdump, and no GPU.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dfmr_kernels.decide import Grid
from dfmr_kernels.tiling import plan_passes, traffic
from dfmr_kernels.triton_kernels import OPTIONS, SUM_BLOCK, pool_arguments, pool_kernel, sigma_kernel

FACTORS = (2, 3, 4, 6, 8, 12)
TARGETS = (80, 90, 100)
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
WARP = 32


class Case(NamedTuple):
    """One encoder's feature maps: (rows, columns), channels, and the dtype by Triton's name."""

    grid: Grid
    channels: int
    dtype: str


class Usage(NamedTuple):
    """What one compiled kernel takes: registers per thread, bytes of shared memory per program and local per thread."""

    registers: int
    shared: int
    local: int


CASES = {
    "llava-1.5-bf16": Case((24, 24), 1024, "bf16"),
    "llava-1.5-fp16": Case((24, 24), 1024, "fp16"),
    "llava-1.5-fp32": Case((24, 24), 1024, "fp32"),
    "siglip-so400m-bf16": Case((27, 27), 1152, "bf16"),
}


def compile_case(case: Case, target: int) -> Iterator[tuple[str, Usage]]:
    """Compile each kernel of a case for sm_`target` and yield its name and what it uses."""
    features = {"features": f"*{case.dtype}", "pooled": f"*{case.dtype}", "picture_stride": "i32"}
    for plan in plan_passes(FACTORS):
        arguments = pool_arguments(plan, case.grid, case.channels)
        types = {**features, "partial_sigma": "*fp32", "finite": "*i1"}
        yield f"pool {','.join(map(str, plan.factors))}", _compile(pool_kernel, types, arguments, target)
    types = {"partial_sigma": "*fp32", "sigma": "*fp32"}
    yield "sigma", _compile(sigma_kernel, types, {"D": case.channels, "BLOCK": SUM_BLOCK}, target)


def _compile(kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], target: int) -> Usage:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    # What Triton would find out at launch: torch aligns its memory, and strides are multiples of the channels.
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in types if name != "finite"}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, WARP), options=OPTIONS)
    return _usage(compiled.asm["cubin"])


def _usage(cubin: bytes) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    return Usage(found["REG"], found["SHARED"], found["STACK"] + found["LOCAL"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables for the chosen targets and cases; 1 if a kernel spills, else 0."""
    parser = argparse.ArgumentParser(prog="python -m dfmr_kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS, help="compute capabilities, e.g. 90")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    chosen = parser.parse_args(arguments)

    spills = False
    print(f"{'case':20} {'target':7} {'kernel':18} {'registers':>9} {'shared':>6} {'local':>5}")
    for name in chosen.cases:
        for target in chosen.targets:
            for kernel, usage in compile_case(CASES[name], target):
                spills |= usage.local > 0
                registers, shared, local = usage
                print(f"{name:20} sm_{target:<4} {kernel:18} {registers:9} {shared:6} {local:5}", flush=True)

    print(f"\n{'case':20} {'map read':>9} {'outputs':>9} {'scratch':>9} {'moved':>9} {'floor':>9}  bytes per picture")
    for name in chosen.cases:
        case = CASES[name]
        moved = traffic(case.grid, case.channels, ITEMSIZE[case.dtype], FACTORS)
        columns = (moved.map_read, moved.outputs_written, moved.scratch, moved.moved, moved.floor)
        print(f"{name:20} {' '.join(f'{count:9}' for count in columns)}  {moved.moved / moved.floor:.3f} of the floor")
    return int(spills)


if __name__ == "__main__":
    sys.exit(main())
