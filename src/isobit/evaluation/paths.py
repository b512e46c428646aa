"""What ran a model that was measured, and the machine it ran on."""

from __future__ import annotations

import os
import platform

import torch

from isobit.evaluation.results import ExecutionPath
from isobit.formats.caches import AUTO
from isobit.kernels.cpu import library as cpu_library
from isobit.models.decoder import Decoder
from isobit.targets.detect import Machine
from isobit.targets.here import cpu_target
from isobit.version import __version__


def execution_path(name: str, model: Decoder, machine: Machine) -> ExecutionPath:
    """The path that a loaded model takes.

    Args:
        name: what to call it.
        model: the model.
        machine: the one that runs it.
    """
    target = model.place.target or cpu_target(machine)
    return ExecutionPath(
        model=name,
        device=model.place.device,
        target=target.name,
        dtype=str(model.dtype).removeprefix("torch."),
        linears=linear_kernels(model),
        layers=layer_kernels(model),
        batch_invariant=model.place.alike,
    )


def layer_kernels(model: Decoder) -> str:
    """What runs the rest of the layers, what its cache holds, and why not all run in one call where they can."""
    why, cache = model.why_by_layer, "" if model.stored == AUTO else f", {model.stored.name} cache"
    lacks = "" if model.kernels_lack is None else f" (the kernel {model.kernels_lack})"
    return model.layer_ops.name + lacks + cache + ("" if why is None else f" (layer by layer: {why})")


def linear_kernels(model: Decoder) -> str:
    """The kernels that run a model's linear layers; isobit's own on the CPU with the instruction set they use."""
    names = sorted({linear.kernel.name for _, linear in model.linears()})
    return " + ".join(_with_how(name) for name in names)


def _with_how(name: str) -> str:
    if name == "cpu":
        return f"cpu ({cpu_library.isa()})"
    return f"{name} (in Triton's interpreter, on the CPU)" if name == "triton" and _interpreted() else name


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def hardware(model: Decoder, machine: Machine) -> str:
    """The machine in words: its GPU, where that ran the model, and its CPU."""
    cpu = f"{machine.cpu}, {machine.cores} usable cores, {machine.system}"
    return f"{torch.cuda.get_device_name()}; {cpu}" if model.place.tensors.type == "cuda" else cpu


def versions(model: Decoder, machine: Machine) -> tuple[tuple[str, str], ...]:
    """(package, version) of what measured: with Triton where its kernels ran."""
    found = [("isobit", __version__), ("torch", torch.__version__), ("Python", platform.python_version())]
    triton = dict(machine.packages)["triton"]
    if model.place.device != "cpu" and triton is not None:
        found.insert(2, ("triton", triton))
    return tuple(found)
