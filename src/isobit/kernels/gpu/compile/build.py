"""Compiles one request with Triton, without a GPU. The only file that calls Triton's compiler."""

from __future__ import annotations

import importlib
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from isobit.errors import IsobitError
from isobit.kernels.gpu.compile.request import Constant, Request


def compile_request(request: Request) -> Any:
    """Triton's compiled kernel for a request.

    Raises:
        IsobitError: the kernel does not exist, or has other arguments than the request says.
        Exception: whatever Triton raises when it cannot compile the kernel for that target.
    """
    module, _, function = request.entry.partition(":")
    kernel = getattr(importlib.import_module(module), function, None)
    if kernel is None or not hasattr(kernel, "arg_names"):
        raise IsobitError(f"{request.entry} is not a Triton kernel")
    types = {**request.signature, **dict.fromkeys(request.constants, "constexpr")}
    missing = [name for name in kernel.arg_names if name not in types]
    unknown = sorted(set(request.constants) - set(kernel.arg_names))
    if missing or unknown:
        raise IsobitError(f"{request.entry}: the row leaves out {missing} and sets {unknown}, which do not exist")
    source = _source_of(kernel)(
        fn=kernel,
        signature={name: types[name] for name in kernel.arg_names},
        constexprs={name: constant(value) for name, value in request.constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if name in request.aligned
        },
    )
    return triton.compile(source, target=GPUTarget(*request.backend), options=dict(request.options))


def _source_of(kernel: Any) -> Any:
    """What Triton compiles a kernel as: those in Gluon say which thread holds what themselves."""
    if not kernel.is_gluon():
        return ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def constant(value: Constant) -> Any:
    """The value that Triton takes for a compile-time argument."""
    if isinstance(value, str) and value.startswith("dtype:"):
        return triton.language.dtype(value.removeprefix("dtype:"))
    return value
