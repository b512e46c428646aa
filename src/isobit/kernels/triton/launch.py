"""Compiles a kernel for a target, once, and runs it on the card at hand, which may be a newer one.

A kernel compiled for another NVIDIA target is that target's code in NVIDIA's portable assembly (PTX), which the
assembler turns into machine code for the card at hand. So the lowering of an absent card runs here as it is.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from isobit.errors import Unsupported
from isobit.kernels.tiles import Config, overlaps
from isobit.targets.spec import Target

Frozen = tuple[tuple[str, Any], ...]


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


class Kernel:
    """One compiled kernel; call it with a grid and the arguments that are not constants."""

    def __init__(self, entry: str, config: Config, target: Target) -> None:
        self._entry, self._config, self._target = entry, config, target
        self._function = _function(entry)
        self._names = tuple(self._function.arg_names)
        self._ready: dict[tuple[str, ...], Any] = {}  # by the arguments that are multiples of 16

    def __call__(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Runs the kernel on the current stream."""
        shape = (*grid, 1, 1)[:3]
        if interpreting():
            given = {name: value for name, value in arguments.items() if name in self._names}
            self._function[shape](**given, **_interpretable(self._config))
            return
        aligned = tuple(name for name, value in arguments.items() if self._is_aligned(name, value))
        kernel = self._ready.get(aligned)
        if kernel is None:
            config = self._config
            key = (_frozen(config.signature), _frozen(config.constexprs), config.num_warps, config.num_stages)
            kernel = self._ready[aligned] = _compiled(self._entry, *key, aligned, self._target, _capability())
        kernel[shape](*(arguments.get(name) for name in self._names))

    def _is_aligned(self, name: str, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return value.data_ptr() % 16 == 0
        return name in self._config.divisible and value % 16 == 0


def _interpretable(config: Config) -> dict[str, Any]:
    """The constants without what the interpreter has not: inline assembly and overlapping launches."""
    plain: dict[str, Any] = {"ASM": False, "OVERLAP": False}
    return {name: plain.get(name, value) for name, value in config.constexprs.items()}


def _function(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _frozen(mapping: Mapping[str, Any]) -> Frozen:
    return tuple(sorted(mapping.items()))


def _capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@lru_cache(maxsize=1024)
def _compiled(
    entry: str, signature: Frozen, constants: Frozen, warps: int, stages: int, aligned: tuple[str, ...], target: Target,
    device: int,
) -> Any:  # fmt: skip
    function = _function(entry)
    names, given, types = function.arg_names, dict(constants), dict(signature)
    source = ASTSource(
        fn=function,
        signature={name: "constexpr" if name in given else types[name] for name in names},
        constexprs={(index,): given[name] for index, name in enumerate(names) if name in given},
        attrs={(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in aligned},
    )
    assert target.backend is not None
    backend, arch, threads = target.backend
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if given.get("OVERLAP") and overlaps(target):
        options["launch_pdl"] = True
    kernel = triton.compile(source, target=GPUTarget(backend, arch, threads), options=options)
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
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(kernel.asm["ptx"])
        suffix = "a" if device >= 90 else ""
        command = [get_ptxas(device).path, f"--gpu-name=sm_{device}{suffix}", str(text), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            raise Unsupported(f"assembling sm_{arch} code for sm_{device}", [done.stderr.strip()])
        kernel.asm["cubin"] = kernel.kernel = binary.read_bytes()
