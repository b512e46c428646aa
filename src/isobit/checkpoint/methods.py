"""Ways to store few-bit weights that isobit knows by sight and does not run: what betrays each, and who writes it.

Whatever meets a checkpoint asks :func:`refuse_unread` first, so that a model whose weights are stored, or are to be
computed, in such a way is refused by its name everywhere, even where its tensors look like plain ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from isobit.checkpoint.files import is_there
from isobit.checkpoint.jsonfile import bare, short
from isobit.checkpoint.layouts.table import CONFIGS, implied
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.sections import ALTERNATIVE, INSTEAD, method_name, section
from isobit.checkpoint.sidefiles import ADOPTED
from isobit.errors import CheckpointError, Unsupported

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


@dataclass(frozen=True)
class Method:
    """One way to store weights.

    Attributes:
        title: its name, and the tools that write it.
        names: what ``quant_method`` says, in lower case.
        keys: of a section without ``quant_method``: it is this method if it has all keys of one of these.
        top_keys: keys of config.json itself.
        files: files beside config.json that only such checkpoints have; patterns.
        tensors: what names of its tensors end in.
        nearest: isobit's scheme that comes nearest, or nothing.
    """

    title: str
    names: tuple[str, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()
    top_keys: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    nearest: str = ""


# The order matters for what has no quant_method: the first row that fits is named.
METHODS: tuple[Method, ...] = (
    Method("ModelOpt (TensorRT Model Optimizer)", ("modelopt_mixed",),
           keys=(("quant_algo",), ("producer",)), nearest="fp8-static or int4"),
    Method("AWQ (llm-awq) or AutoSmoothQuant", ("llm-awq",), keys=(("w_bit",), ("zero_point", "bits")),
           files=("quant_config.json",), nearest="int4-asym"),
    Method("GPTQ (AutoGPTQ, GPTQModel, AutoRound)",
           keys=(("desc_act",), ("damp_percent",), ("checkpoint_format", "bits")), nearest="int4"),
    Method("AutoRound", keys=(("packing_format",),), nearest="int4"),
    Method("MLX", ("mlx",), keys=(("bits", "group_size"), ("mode", "group_size")), top_keys=("quantization",),
           tensors=(".biases",), nearest="int4-g64"),
    Method("HQQ in a pickle of its own, which is read where there are no other weights", files=("qmodel.pt",),
           nearest="int4-g64"),
    Method("ExLlamaV2 and V3", ("exl2", "exl3"), tensors=(".q_groups", ".trellis"), nearest="int4"),
    Method("GGUF (llama.cpp)", ("gguf",), files=("*.gguf",), nearest="int8-w8a16-g32 or int4-g32"),
    Method("BitNet", ("bitnet",)),
    Method("relatives of MXFP4", ("mxfp6", "mxfp8", "nvfp4")),
    Method("Quark", ("quark",)),
)  # fmt: skip

# The small files among them, which are fetched with a configuration: they say what it leaves out.
SIDE_FILES = tuple(
    dict.fromkeys((*ADOPTED, *(name for row in METHODS for name in row.files if name.endswith(".json"))))
)
# The methods that are read, by their first names.
READ = tuple({parse: name for name, parse in reversed(CONFIGS.items())}.values())[::-1]


@dataclass(frozen=True)
class Finding:
    """How a checkpoint's weights are stored.

    Attributes:
        name: what ``quant_method`` says, or nothing.
        row: the method, if isobit knows it by sight.
        evidence: what tells.
    """

    name: str | None
    row: Method | None
    evidence: str

    @property
    def title(self) -> str:
        """The method for people: ``'gptq' (GPTQ, as written by ...)``."""
        known = self.row.title if self.row is not None else ""
        if self.name is None:
            return known or "that isobit does not know"
        return f"{short(self.name)} ({known})" if known and known != self.name else short(self.name)


def unread(config: Mapping[str, Any], folder: Path | None = None, tensors: Iterable[str] = ()) -> Finding | None:
    """What tells that a checkpoint's weights are stored, or to be computed, in a way that isobit does not run.

    Args:
        config: its ``config.json``.
        folder: where it lies, for the files beside it; None when there is nothing but the configuration.
        tensors: names of its tensors, as far as they are known.

    Raises:
        CheckpointError: the configuration says nothing that could be understood.
    """
    found = section(config)
    if found is not None:
        key, part = found
        name = method_name(key, part)
        return None if name in CONFIGS else Finding(name, _by_section(name, part), f"the {key} of config.json says so")
    for row in METHODS:
        evidence = "" if CONFIGS.keys() & {*row.names} else _evidence(row, config, folder, tensors)
        if evidence:
            return Finding(None, row, evidence)
    if config.get("quantization"):
        return Finding(None, None, f"config.json says quantization = {short(config['quantization'])}")
    return None


def refuse_unread(config: Mapping[str, Any], folder: Path | None = None, tensors: Iterable[str] = ()) -> None:
    """Refuses a checkpoint of a method that isobit does not run; takes what :func:`unread` takes.

    Raises:
        CheckpointError: the configuration says nothing that could be understood.
        Unsupported: it is one; names the method, what tells, and what to do instead.
    """
    finding = unread(config, folder, tensors)
    if finding is None:
        return
    nearest = finding.row.nearest if finding.row is not None else ""
    raise Unsupported(
        f"quantization method {finding.title}",
        [f"isobit reads {', '.join(READ)} checkpoints", finding.evidence],
        f"quantize the original model with isobit ({nearest} comes nearest), or {ALTERNATIVE}" if nearest else INSTEAD,
    )


def with_implied(config: dict[str, Any], tensors: Mapping[str, str]) -> dict[str, Any]:
    """A ``config.json``, with the section on quantization that tensors stand for where it has none of its own.

    Args:
        config: its contents.
        tensors: names of tensors with their dtypes.
    """
    try:
        found = implied(tensors) if section(config) is None else None
    except CheckpointError:  # whoever reads it will say what is wrong with it
        return config
    return config if found is None else {**config, "quantization_config": found}


def parse(config: Mapping[str, Any]) -> Quantization | None:
    """What a ``config.json`` says about quantization, as the layout of its method reads it; None if it says nothing.

    Raises:
        CheckpointError: the section is malformed.
        Unsupported: another method, or a part of this one that isobit cannot run.
    """
    refuse_unread(config)
    found = section(config)
    if found is None:
        return None
    name = method_name(*found)
    assert name is not None  # or else it would have been refused
    return CONFIGS[name](found[1]).prepared()


def _by_section(name: str | None, part: Mapping[str, Any]) -> Method | None:
    """The row of a section's method; without a name, the row whose keys it has."""
    if name is not None:
        return next((row for row in METHODS if name in row.names), None)
    return next((row for row in METHODS if any(all(key in part for key in keys) for keys in row.keys)), None)


def _evidence(row: Method, config: Mapping[str, Any], folder: Path | None, tensors: Iterable[str]) -> str:
    """What beside a section tells that a checkpoint is of this kind; empty if nothing does."""
    for holder in (config, config.get("text_config")):
        for key in row.top_keys:
            if isinstance(holder, Mapping) and isinstance(holder.get(key), dict) and holder[key]:
                return f"config.json has a key {key!r}"
    for pattern in row.files if folder is not None else ():
        file = _file(folder, pattern)  # type: ignore[arg-type]
        if file is not None:
            return f"{bare(file.name)} lies beside config.json (if the weights are plain, remove that file)"
    tensor = next((name for name in tensors if name.endswith(row.tensors)), None) if row.tensors else None
    return f"it has tensors like {short(tensor)}" if tensor is not None else ""


def _file(folder: Path, pattern: str) -> Path | None:
    """The file of this name that makes a folder one of a method's."""
    if "*" in pattern:  # files of weights: telling only where there are no others
        names = _names(folder)
        others = any(fnmatchcase(name, weights) for name in names for weights in _WEIGHTS)
        match = next((name for name in names if fnmatchcase(name, pattern)), None)
        return None if match is None or others else folder / match
    file = folder / pattern
    return file if is_there(file) else None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:  # whoever opens its files will say why
        return []
