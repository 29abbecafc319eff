"""Count the instructions of the head's kernels as compiled for Hopper; no GPU is needed.

    python tests/bench/kernels.py

One line for each kernel that computes logits, in bfloat16: registers of a thread, bytes spilled,
shared memory, and instructions that a warp issues for one tile, in a step of the loop of its
products and outside of the loop. What runs only for tiles with a target in them is counted apart.
Then, for several widths D, the cycles in which the schedulers issue what is outside of the loop, as
a share of those in which the tensor cores multiply the tile: the two do not overlap, since one
program fills a multiprocessor. These are counts of compiled instructions, not times.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

sys.path.append(str(Path(__file__).resolve().parents[1] / "objectives" / "head"))

from test_triton_head import Variant, compile_for_hopper, resources

from deft.objectives.head.triton_kernels import tiles_for

WIDTHS = (576, 1536, 3584)
"""Widths of SmolLM2-135M, Qwen2.5-1.5B and Qwen2.5-7B."""
SCHEDULERS = 4
"""Instructions that a multiprocessor issues in a cycle."""
PRODUCTS = 1024 * 4 // 2
"""Multiplications with addition of 16-bit numbers that its tensor cores do in a cycle."""
PLAIN = ("bias_ptr", "softcap")
LOGGED = (("CONCENTRATION", 1), ("ENTROPY", 1))
KERNELS = {
    "statistics": Variant("statistics_kernel", torch.bfloat16, PLAIN, LOGGED),
    "errors": Variant("error_kernel", torch.bfloat16, PLAIN),
    "errors, soft-capped": Variant("error_kernel", torch.bfloat16, ("bias_ptr",)),
}
"""Kernels that compute logits, as most models have them compiled."""


class Instruction(NamedTuple):
    """One instruction of the machine code."""

    address: int
    text: str

    @property
    def jump(self) -> int | None:
        """Return where a branch goes; None for any other instruction."""
        match = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+)", self.text)
        return int(match[1], 16) if match else None


class Counts(NamedTuple):
    """Instructions of one warp."""

    step: int
    """In one step of the main loop."""
    outside: int
    """Outside of it for one tile, if no row has its target there."""
    with_target: int
    """More, if one has."""


def machine_code(cubin: bytes) -> list[Instruction]:
    """Disassemble a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        listing = subprocess.run(
            [tool, "-sass", path], check=True, capture_output=True, text=True
        ).stdout
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    # What follows the end of the kernel is padding.
    return [Instruction(int(address, 16), text) for address, text in found if text != "NOP"]


def count(code: list[Instruction]) -> Counts:
    """Count the instructions of a kernel that computes tiles of logits."""
    loops = [
        [each for each in code if end.jump <= each.address <= end.address]
        for end in code
        if end.jump is not None and end.jump < end.address
    ]
    inner = min((loop for loop in loops if any("HGMMA" in each.text for each in loop)), key=len)
    # The statistics' loop over tiles lies around it.
    around = [loop for loop in loops if len(loop) > len(inner) and inner[0] in loop]
    tile = max(around, key=len, default=code)
    # The branch around what is done for targets is the longest after the main loop.
    skips = [
        [each for each in tile if start.address < each.address < start.jump]
        for start in tile
        if start.jump is not None and start.jump > start.address > inner[-1].address
    ]
    targets = max((skip for skip in skips if skip[-1] is not tile[-1]), key=len, default=[])
    return Counts(len(inner), len(tile) - len(inner) - len(targets), len(targets))


def main() -> None:
    """Print the table."""
    print(f"triton {triton.__version__}, compute capability 9.0, bfloat16\n")
    header = (
        "kernel", "registers", "spilled bytes", "shared KiB", "in a step", "outside", "with target",
        *(f"share of the tensor cores' cycles, D = {width}" for width in WIDTHS),
    )  # fmt: skip
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, variant in KERNELS.items():
        compiled: Any = compile_for_hopper(variant)
        with tempfile.TemporaryDirectory() as folder:
            usage = resources(compiled.asm["cubin"], Path(folder))
        counts = count(machine_code(compiled.asm["cubin"]))
        tiles = tiles_for(variant.dtype, None if "softcap" in variant.absent else 30.0)
        issue = counts.outside * tiles.num_warps / SCHEDULERS
        shares = (
            f"{issue / (tiles.rows * tiles.columns * width / PRODUCTS):.0%}" for width in WIDTHS
        )
        row = (
            name, usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared >> 10,
            counts.step, counts.outside, counts.with_target, *shares,
        )  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
