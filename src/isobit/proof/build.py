"""Compiles one request with Triton, without a GPU, and disassembles it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from isobit.errors import IsobitError
from isobit.kernels.gpu.compile.build import compile_request
from isobit.kernels.gpu.compile.request import Request
from isobit.proof.listing import Listing, parse_amdgcn, parse_ptx, parse_sass

OLDEST_READABLE = 75


@dataclass(frozen=True)
class Built:
    """Machine code and what the tools say about it; see ``Evidence`` for the units."""

    code: bytes
    text: str
    listing: Listing
    registers: int
    shared: int
    local: int
    portable: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the machine code."""
        return hashlib.sha256(self.code).hexdigest()


def build(request: Request) -> Built:
    """Compiles and disassembles a request; raises what ``compile_request`` raises."""
    kernel = compile_request(request)
    return _built_cuda(kernel) if request.backend[0] == "cuda" else _built_hip(kernel)


def _built_cuda(kernel: Any) -> Built:
    code = kernel.asm["cubin"]
    with tempfile.TemporaryDirectory(prefix="isobit-") as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(code)
        # The disassembler of CUDA 13.1, which comes with Triton, no longer reads Volta's code.
        portable = kernel.metadata.target.arch < OLDEST_READABLE
        text = kernel.asm["ptx"] if portable else _tool(triton.knobs.nvidia.nvdisasm.path, "-c", "-ndf", str(cubin))
        usage = _tool(triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin))
    numbers = re.search(
        rf"Function {re.escape(kernel.metadata.name)}:\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage
    )
    if numbers is None:
        raise IsobitError(f"cuobjdump says nothing about {kernel.metadata.name}: {usage!r}")
    registers, stack, local = map(int, numbers.groups())
    listing = parse_ptx(text) if portable else parse_sass(text)
    return Built(code, text, listing, registers, kernel.metadata.shared, max(stack, local), portable)


def _built_hip(kernel: Any) -> Built:
    text = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        match = re.search(rf"^\s*(?:- )?\.{name}:\s+(\d+)", text, re.MULTILINE)
        if match is None:
            raise IsobitError(f"the compiler's text says nothing about {name}")
        return int(match[1])

    registers, local = number("vgpr_count"), number("private_segment_fixed_size")
    return Built(kernel.asm["hsaco"], text, parse_amdgcn(text), registers, kernel.metadata.shared, local)


def _tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise IsobitError(f"{Path(command[0]).name} failed with status {done.returncode}: {done.stderr.strip()[:400]}")
    return done.stdout
