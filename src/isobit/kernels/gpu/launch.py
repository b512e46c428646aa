"""Compiles a kernel for a target, once, and runs it on the card at hand, which may be a newer one.

A kernel compiled for another NVIDIA target is that target's code in NVIDIA's portable assembly (PTX), which the
assembler turns into machine code for the card at hand. So the lowering of an absent card runs here as it is.

Triton is imported when the first kernel is compiled: without it everything runs on CPUs, and so does a kernel pack.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isobit.errors import Unsupported
from isobit.kernels.gpu.compile.request import Request, arguments_of, block_of, specialize
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs import loaded
from isobit.kernels.gpu.packs.record import begins_aligned
from isobit.kernels.gpu.tiles import Config


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU: asked without importing Triton."""
    triton = sys.modules.get("triton")
    if triton is not None and hasattr(triton, "knobs"):
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


class Kernel:
    """One compiled kernel; call it with a grid and the arguments that are not constants."""

    def __init__(self, entry: str, config: Config, machine: Machine) -> None:
        self.entry, self.config, self._machine = entry, config, machine
        self._names = arguments_of(entry)
        self._ready: dict[tuple[str, ...], Any] = {}  # by the arguments that are multiples of 16

    def __call__(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Runs the kernel on the current stream."""
        shape = (*grid, 1, 1)[:3]
        if interpreting():
            given = {name: value for name, value in arguments.items() if name in self._names}
            given |= {name: _described(given[name], self.config.block_of(name)) for name in self.config.copied}
            _function(self.entry)[shape](**given, **_interpretable(self.config))
            return
        aligned = tuple(name for name, value in arguments.items() if self._is_aligned(name, value))
        if self._machine.recorder is not None:
            self._machine.recorder.add(self._request(aligned))
            return
        kernel = self._ready.get(aligned)
        if kernel is None:
            kernel = self._ready[aligned] = _prepared(self._request(aligned), self._names)
        kernel[shape](*(arguments.get(name) for name in self._names))

    def _request(self, aligned: tuple[str, ...]) -> Request:
        return specialize(self.entry, self.config, self._machine.target, aligned)

    def _is_aligned(self, name: str, value: Any) -> bool:
        if name not in self.config.signature:
            return False
        if isinstance(value, torch.Tensor):
            return begins_aligned(value) if self._machine.recorder is not None else value.data_ptr() % 16 == 0
        return name in self.config.divisible and value % 16 == 0


def _interpretable(config: Config) -> dict[str, Any]:
    """The constants without what the interpreter has not: inline assembly and overlapping launches."""
    plain: dict[str, Any] = {"ASM": False, "CONVERTS": False, "HALVES": False, "OVERLAP": False}
    return {name: plain.get(name, value) for name, value in config.constexprs.items()}


def _function(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


_PREPARED: dict[tuple[str, int], Any] = {}  # by the request's name and the card's capability


def _prepared(request: Request, names: tuple[str, ...]) -> Any:
    """Machine code for the card at hand: from the kernel pack in use, or compiled."""
    pack = loaded.active()
    packed = None if pack is None else pack.find(request, names)
    if packed is not None:
        return packed
    key = (request.name(), _capability())
    if key not in _PREPARED:
        kernel = _compiled(request, key[1])
        blocks = {place: block[1] for place, name in enumerate(names) if (block := _block(request, name)) is not None}
        _PREPARED[key] = _Describing(kernel, blocks) if blocks else kernel
    return _PREPARED[key]


def _block(request: Request, name: str) -> tuple[str, tuple[int, int]] | None:
    return None if name in request.constants else block_of(request.signature[name])


class _Describing:
    """A kernel that Triton has compiled, in whose launches descriptors of matrices stand for the matrices.

    Args:
        kernel: it.
        blocks: the places of the arguments that are descriptors, each with rows and columns of a block.
    """

    def __init__(self, kernel: Any, blocks: dict[int, tuple[int, int]]) -> None:
        self.kernel, self.blocks = kernel, blocks

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        launch, blocks = self.kernel[grid], self.blocks

        def described(*arguments: Any) -> None:
            launch(*(_described(one, blocks[at]) if at in blocks else one for at, one in enumerate(arguments)))

        return described


def _described(matrix: torch.Tensor, block: tuple[int, int]) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), list(block))


def _compiled(request: Request, device: int) -> Any:
    from isobit.kernels.gpu.compile.build import compile_request

    kernel = compile_request(request)
    backend, arch, _ = request.backend
    if backend == "cuda" and torch.version.hip is None and arch != device:
        _reassemble(kernel, int(arch), device)
    return kernel


def _reassemble(kernel: Any, arch: int, device: int) -> None:
    """Turns the kernel's portable assembly, made for ``arch``, into machine code for the card at hand."""
    if arch > device or arch == 90 or arch >= 100:
        raise Unsupported(
            f"running code for sm_{arch} on an sm_{device} card",
            ["a card runs the portable assembly of older targets only, and none of the sm_90a and sm_100a families"],
        )
    from triton.runtime.cache import get_cache_manager

    cache = get_cache_manager(hashlib.sha256(f"{kernel.hash} on {device}".encode()).hexdigest())
    kept = cache.get_file("kernel.cubin")
    code = Path(kept).read_bytes() if kept else _assembled(kernel.asm["ptx"], arch, device)
    if not kept:
        cache.put(code, "kernel.cubin", binary=True)
    kernel.asm["cubin"] = kernel.kernel = code


def _assembled(text: str, arch: int, device: int) -> bytes:
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text)
        suffix = "a" if device >= 90 else ""
        command = [get_ptxas(device).path, f"--gpu-name=sm_{device}{suffix}", str(source), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            raise Unsupported(f"assembling sm_{arch} code for sm_{device}", [done.stderr.strip()])
        return binary.read_bytes()
