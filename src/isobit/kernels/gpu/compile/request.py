"""What to compile, as data, and the name of the result: a hash of everything that decides what comes out. Pure."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from isobit.errors import IsobitError
from isobit.kernels.gpu.tiles import Config, overlaps
from isobit.targets.spec import Target

# A value of a compile-time argument; `dtype:fp16` stands for Triton's float16, in Triton's own short names.
Constant = str | int | float | bool | None

_DESCRIPTOR = re.compile(r"tensordesc<(\w+)\[(\d+),(\d+)\](?:,\w+\([\d, ]+\))?>")
_BITS = {"fp8e4nv": 8, "fp8e5": 8, "i8": 8, "fp16": 16, "bf16": 16}


@dataclass(frozen=True)
class Request:
    """One specialization of one kernel for one machine.

    Attributes:
        entry: ``module:function`` of the kernel.
        backend: Triton's backend (``cuda``, ``hip``), architecture (86, ``gfx942``) and threads of a warp.
        signature: run-time argument to Triton's type (``*fp16``, ``i32``, and ``tensordesc<fp16[128,64]>`` for the
            descriptor of a matrix that TMA copies in such blocks, with how those lie in shared memory behind it for
            kernels in Gluon); may name more than the kernel takes.
        constants: compile-time argument to value.
        aligned: run-time arguments that are multiples of 16 (addresses: of 16 bytes).
        options: Triton's compiler options: num_warps, num_stages, ...
    """

    entry: str
    backend: tuple[str, int | str, int]
    signature: Mapping[str, str]
    constants: Mapping[str, Constant]
    aligned: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def name(self) -> str:
        """SHA-256 of the request alone."""
        return _hash(asdict(self))

    def key(self, triton_version: str) -> str:
        """SHA-256 of everything that decides the machine code: request, the kernel's sources, Triton's version."""
        return _hash([asdict(self), sources(self.entry.partition(":")[0]), triton_version])


def specialize(entry: str, config: Config, target: Target, aligned: tuple[str, ...]) -> Request:
    """The request for a kernel as it is configured for a target: what the launcher, the proof and packs have in common.

    Args:
        entry: ``module:function``.
        config: types, constants, warps and stages.
        target: one that Triton compiles for.
        aligned: run-time arguments that are multiples of 16.
    """
    assert target.backend is not None, f"Triton does not compile for {target.name}"
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    if config.constexprs.get("OVERLAP") and overlaps(target):
        options["launch_pdl"] = True
    types = {**config.signature, **{name: _descriptor(config, name) for name in config.copied}}
    aligned = tuple(sorted(name for name in aligned if name not in config.copied))
    return Request(entry, target.backend, types, config.constexprs, aligned, options)


def _descriptor(config: Config, name: str) -> str:
    (rows, columns), dtype = config.block_of(name), config.signature[name].removeprefix("*")
    layout = f",NVMMASharedLayout({config.swizzled}, {_BITS[dtype]}, 2)" if config.swizzled else ""
    return f"tensordesc<{dtype}[{rows},{columns}]{layout}>"


def block_of(kind: str) -> tuple[str, tuple[int, int]] | None:
    """What a descriptor describes: Triton's name of the dtype, rows and columns of a block; None for other types."""
    found = _DESCRIPTOR.fullmatch(kind)
    return None if found is None else (found[1], (int(found[2]), int(found[3])))


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def sources(module: str) -> dict[str, str]:
    """The modules that a kernel's code can come from, each with the SHA-256 of its file.

    That is its own module and, in turn, every module of the same top-level package that is imported there. They are
    read and not run, so that a warm cache answers without importing Triton.

    Raises:
        IsobitError: the module does not exist.
    """
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        path = _file(name)
        if path is None:
            if name == module:
                raise IsobitError(f"there is no module {module!r} to compile kernels from")
            continue  # `from package import name` may name something that is no module
        text = path.read_bytes()
        found[name] = hashlib.sha256(text).hexdigest()
        pending.extend(one for one in _imports(text) if one.split(".")[0] == module.split(".")[0])
    return found


@cache
def arguments_of(entry: str) -> tuple[str, ...]:
    """The names of a kernel's arguments in their order, compile-time ones too, without importing Triton.

    Raises:
        IsobitError: there is no such kernel.
    """
    module, _, name = entry.partition(":")
    path = _file(module)
    body = () if path is None else _parsed(path).body
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return tuple(one.arg for one in node.args.args)
    raise IsobitError(f"{entry} is not a Triton kernel")


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _file(module: str) -> Path | None:
    """A module's file. Only the top-level package is asked of Python: for more, Python would run what holds it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if not rest:
        return path
    inside = path.parent.joinpath(*rest)
    return next((file for file in (inside.with_suffix(".py"), inside / "__init__.py") if file.is_file()), None)


def _imports(text: bytes) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.extend(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
            names.extend(f"{node.module}.{one.name}" for one in node.names)
    return names
