"""GPTQ (AutoGPTQ, GPTQModel) and AutoRound: codes packed along the inputs, zero points along the outputs.

    qweight  I32 [K * bits / 32, N]      scales  F16 [G, N]
    qzeros   I32 [G, N * bits / 32]      g_idx   I32 [K], the group of each input (may be left out)

A weight is ``(code - zero) * scale``. Version 1 stores zero points less one (GPTQModel takes it off a word at a time),
version 2 and AutoRound's own packing store them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts import auto_round_floats, integers
from isobit.checkpoint.layouts.integers import Found, group_of, whole_number, yes_or_no
from isobit.checkpoint.layouts.needs import Need
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Integers, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.sections import INSTEAD
from isobit.checkpoint.shown import listed
from isobit.errors import CheckpointError, Unsupported
from isobit.formats.spec import words_of

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

BITS = (2, 3, 4, 8)
PARTS = ("qzeros", "scales", "g_idx")
_SCALE_DTYPES = ("F16", "BF16", "F32")
_ORDER = (
    "groups are of inputs in an order of their own (desc_act): inputs are put into it before each product, one pass "
    "over them; experts are made plain floats of 16 bits instead"
)
_UNORDERED = "is missing, but quantization_config says that inputs are in an order of their own (desc_act)"
_VERSIONS = {"gptq": "one less, by words", "gptq_v2": "itself"}
# Of the packings of AutoRound; those of AWQ are read in awq.py.
_PACKINGS = {
    "auto_round": "itself", "auto_round:gptqmodel": "itself",
    "auto_round:gptq": "one less", "auto_round:auto_gptq": "one less", "auto_gptq": "one less", "gptq": "one less",
    "auto_round:auto_awq": "itself", "auto_round:awq": "itself",
    "auto_round:exllamav2": "one less", "auto_round:tritonv2": "one less",
}  # fmt: skip
# What sections hold: read here, or of no consequence for what is stored and computed.
_HARMLESS = frozenset(
    """quant_method bits group_size sym desc_act static_groups damp_percent damp_auto_increment true_sequential
    model_name_or_path model_file_base_name checkpoint_format format meta tokenizer dataset batch_size
    pad_token_id use_cuda_fp16 model_seqlen use_exllama disable_exllama exllama_config max_input_length
    cache_block_outputs backend block_name_to_quantize module_name_preceding_first_block
    modules_in_block_to_quantize dynamic lm_head pack_dtype act_group_aware hyb_act mse parallel_packing device
    offload_to_disk offload_to_disk_path pack_impl adapter rotation is_marlin_format quant_method_version method
    fail_safe failsafe gptaq v2 compute_device_filter auto_forward_data_parallel vram_strategy mock_quantization
    hessian wait_for_submodule_finalizers gc_mode dense_vram_strategy dense_vram_strategy_devices
    moe_vram_strategy moe_vram_strategy_devices moe runtime_format export_quant_method weight_only preprocessors
    smooth_method smoother foem amp autoround_version data_type enable_minmax_tuning enable_norm_bias_tuning
    enable_quanted_input gradient_accumulate_steps iters low_gpu_mem_usage lr minmax_lr nsamples packing_format
    quant_lm_head scale_dtype seqlen supported_types to_quant_block_names train_bs extra_config act_bits
    act_data_type act_dynamic act_group_size act_sym super_bits super_group_size rotation_config
    provider enable_torch_compile enable_alg_ext low_cpu_mem_usage rotation_configs transform_config""".split()
)  # fmt: skip


# ---------------------------------------------------------------------- config


def _parse(section: dict[str, Any]) -> Quantization:
    """The ``gptq`` method."""
    version = text(section.get("checkpoint_format") or section.get("format"), "gptq", "checkpoint_format").lower()
    if version not in _VERSIONS:
        raise Unsupported(f"GPTQ in format {short(version)}", [f"isobit reads {' and '.join(_VERSIONS)}"], INSTEAD)
    _refuse_extras(section)
    default = _integers(section, _VERSIONS[version])
    groups, ignored = _dynamic(section.get("dynamic"), default)
    targets = _blocks(section.get("modules_in_block_to_quantize"))
    notes = ignored_keys(key for key in section if key not in _HARMLESS)
    ordered = yes_or_no(section, "desc_act", False) and default.group is not None
    if ordered:
        notes.append(_ORDER)
    return Quantization(
        (group_of(targets, default), *groups),
        ignored,
        "gptq",
        version,
        tuple(notes),
        plain_experts=ordered,
    )


def _integers(section: Mapping[str, Any], zeros: Any, base: Integers | None = None) -> Integers:
    bits = whole_number(section, ("bits",), None if base is None else base.bits)
    group = whole_number(section, ("group_size",), 128 if base is None else base.group or -1)
    symmetric = yes_or_no(section, "sym", True if base is None else base.symmetric)
    ordered = yes_or_no(section, "desc_act", base is not None and base.ordered)
    return integers.integers(bits, group, symmetric, zeros, BITS, ordered=ordered)


def _refuse_extras(section: Mapping[str, Any]) -> None:
    reasons = []
    if section.get("is_marlin_format"):
        reasons.append("its codes are in the order of a GPU kernel (is_marlin_format)")
    if text(section.get("pack_dtype"), "int32", "pack_dtype").removeprefix("torch.") != "int32":
        reasons.append(f"its words are {short(section['pack_dtype'])}; isobit reads int32")
    for key in ("rotation", "rotation_config", "rotation_configs", "transform_config"):
        if section.get(key):
            reasons.append(f"its weights are rotated ({key})")
    if section.get("adapter"):
        reasons.append("an adapter belongs to it, which isobit does not apply")
    act_bits = section.get("act_bits")
    if isinstance(act_bits, int) and act_bits < 16:
        reasons.append(f"it rounds activations to {act_bits} bits (act_bits)")
    kind = text(section.get("data_type"), "int", "data_type")
    if kind.partition("_")[0] != "int":
        reasons.append(f"its codes are no integers (data_type {short(kind)})")
    if reasons:
        raise Unsupported(f"this {section.get('quant_method', 'gptq')} checkpoint", reasons, INSTEAD)


def _blocks(value: Any) -> tuple[str, ...]:
    """The modules that are quantized where a list names those of one layer."""
    if not value:
        return ("Linear",)
    listed = value if isinstance(value, list) else [value]
    flat = [name for part in listed for name in (part if isinstance(part, list) else [part])]
    return tuple(f"re:(.*\\.)?{escaped(name)}$" for name in names(flat, "modules_in_block_to_quantize"))


def escaped(name: str) -> str:
    """A name as a pattern that matches itself."""
    return "".join(letter if letter.isalnum() or letter == "_" else f"\\{letter}" for letter in name)


def _dynamic(value: Any, default: Integers) -> tuple[list[Group], tuple[str, ...]]:
    """GPTQModel's exceptions: patterns of modules with settings of their own, or (``-:``) that are left out."""
    if value is None:
        return [], ()
    if not isinstance(value, dict):
        raise CheckpointError(f"quantization_config: dynamic must be a JSON object, not {short(value)}")
    groups, ignored = [], []
    for key, changes in value.items():
        pattern = key[2:] if key[:2] in ("+:", "-:") else key
        if key.startswith("-:") or changes is False:
            ignored.append(f"re:{pattern}")
        elif isinstance(changes, dict):
            groups.append(group_of((f"re:{pattern}",), _integers(changes, default.zeros, default)))
        else:
            raise CheckpointError(f"quantization_config: dynamic[{short(key)}] must be a JSON object")
    return groups, tuple(ignored)


def _parse_auto_round(section: dict[str, Any]) -> Quantization:
    """The method of AutoRound, whose packing is one of those of others, or its own."""
    packing = text(section.get("packing_format"), "auto_round:auto_gptq", "packing_format").lower()
    if packing in auto_round_floats.PACKINGS:
        return _floats(section, packing)
    if packing not in _PACKINGS:
        raise Unsupported(
            f"AutoRound's packing {short(packing)}",
            [f"isobit reads {', '.join((*_PACKINGS, *auto_round_floats.PACKINGS))}"],
            INSTEAD,
        )
    _refuse_extras(section)
    default = _integers(section, _PACKINGS[packing])
    groups, ignored = _exceptions(section.get("extra_config"), default)
    return Quantization(
        (group_of(_within(section.get("block_name_to_quantize")), default), *groups),
        ignored,
        "auto-round",
        packing,
        (*ignored_keys(key for key in section if key not in _HARMLESS),),
    )


def _floats(section: dict[str, Any], packing: str) -> Quantization:
    """AutoRound's floats, whose exceptions are named as those of its integers."""
    groups, ignored = [auto_round_floats.group(section, _within(section.get("block_name_to_quantize")))], []
    for target, changes in _named(section.get("extra_config")):
        if whole_number(changes, ("bits",), 4) >= 16:
            ignored.append(target)
        else:
            groups.append(auto_round_floats.group({**section, **changes}, (target,)))
    notes = ignored_keys(key for key in section if key not in _HARMLESS)
    return Quantization(tuple(groups), tuple(ignored), "auto-round", packing, tuple(notes))


def _named(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The targets and settings of exceptions.

    Raises:
        CheckpointError: they are no JSON objects.
    """
    if value is None:
        return []
    if not isinstance(value, dict) or not all(isinstance(changes, dict) for changes in value.values()):
        raise CheckpointError(f"quantization_config: extra_config must hold JSON objects, not {short(value)}")
    plain = {key: all(letter.isalnum() or letter in "_." for letter in key) for key in value}
    return [(key if plain[key] else f"re:{key}", changes) for key, changes in value.items()]


def _within(value: Any) -> tuple[str, ...]:
    """The modules of the blocks that a section names, all linears where it names none."""
    if not value:
        return ("Linear",)
    blocks = value.split(",") if isinstance(value, str) else value
    flat = [name for part in blocks for name in (part if isinstance(part, list) else [part])] if isinstance(
        blocks, list) else blocks  # fmt: skip
    return tuple(f"re:{escaped(name.strip())}\\." for name in names(flat, "block_name_to_quantize"))


def _exceptions(value: Any, default: Integers) -> tuple[list[Group], tuple[str, ...]]:
    """AutoRound's exceptions: names or patterns of modules with settings of their own; 16 bits are plain."""
    groups, ignored = [], []
    for target, changes in _named(value):
        if whole_number(changes, ("bits",), default.bits) >= 16:
            ignored.append(target)
        else:
            _refuse_extras(changes)
            groups.append(group_of((target,), _integers(changes, default.zeros, default)))
    return groups, tuple(ignored)


# ---------------------------------------------------------------------- tensors


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return "qweight" in infos and any(part in infos for part in PARTS)


def _describe(parts: Parts) -> Described:
    shape = parts.infos["qweight"].shape
    if len(shape) != 2:
        return Described(shape, 0, label="integers in words")
    how = None if parts.group is None else parts.group.integers
    k = -1 if how is None else shape[0] * 32 // how.bits
    return integers.describe(parts, shape[1], _inputs(parts.infos, k))


def _inputs(infos: Mapping[str, TensorInfo], k: int) -> int:
    """How many inputs there are: the words may end in some that are none."""
    index = infos.get("g_idx")
    return index.shape[0] if index is not None and len(index.shape) == 1 else k


def _needs(parts: Parts, n: int, k: int) -> tuple[Need, ...]:
    how = None if parts.group is None else parts.group.integers
    if how is None:
        return ()
    groups = -(-k // (how.group or k))
    return (
        Need("qweight", ("I32",), ((words_of(k, how.bits), n),)),
        Need("scales", _SCALE_DTYPES, ((groups, n),)),
        Need("qzeros", ("I32",), ((groups, words_of(n, how.bits)),)),
        Need("g_idx", ("I32", "I64"), ((k,),), optional=not how.ordered, why=_UNORDERED),
    )


def how_of(reader: Reader, *methods: str) -> Integers:
    """How the config says that a module's integers are packed.

    Raises:
        CheckpointError: it does not, or is that of a method whose tensors look otherwise.
    """
    group = reader.group("qweight")
    quantization = reader.source.quantization
    assert quantization is not None
    said = f"{quantization.method} {quantization.format}"
    if group.integers is None or not any(method in said for method in methods):
        shown = ", ".join(
            f"{part} {list(reader.infos[part].shape)}" for part in ("qweight", *PARTS) if part in reader.infos
        )
        raise reader.error(
            "qweight", f"{shown} are not the tensors of a weight of {quantization.method}: missing or misshapen"
        )
    return group.integers


def _read(reader: Reader) -> LinearWeight:
    import torch

    how = how_of(reader, "gptq", "auto_round")
    rows, n = reader.matrix("qweight")
    k = _inputs(reader.infos, rows * 32 // how.bits)
    if words_of(k, how.bits) != rows:
        raise reader.error("qweight", f"[{rows}, {n}] does not hold {how.bits}-bit codes of {k} inputs")
    groups = -(-k // (how.group or k))
    require(reader, "qweight", ("I32",), (rows, n))
    require(reader, "scales", _SCALE_DTYPES, (groups, n))
    require(reader, "qzeros", ("I32",), (groups, words_of(n, how.bits)))
    part, _ = reader.span(n, k)
    words = reader.take("qweight", None, part).t().contiguous()
    scale = integers.checked_scale(reader, "scales", reader.take("scales", None, part).t().contiguous())
    zero = integers.stored_zeros(reader.take("qzeros"), how, n)[:, part].t().contiguous()
    if how.ordered and "g_idx" not in reader.infos:
        raise reader.error("g_idx", _UNORDERED)
    index = _index(reader, k, groups) if "g_idx" in reader.infos else None
    if index is not None and torch.equal(index, torch.arange(k) // (how.group or k)):
        index = None
    return integers.weight_of(reader, "qweight", how, n, k, Found(words, scale, zero, index))


def _index(reader: Reader, k: int, groups: int) -> Tensor:
    """The group of each input, int64 ``[k]``."""
    require(reader, "g_idx", ("I32", "I64"), (k,))
    index = reader.take("g_idx").long()
    if int(index.min()) < 0 or int(index.max()) >= groups:
        raise reader.error("g_idx", f"names groups from {int(index.min())} to {int(index.max())}; there are {groups}")
    return index


def require(reader: Reader, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """That a part is there, and of a dtype and a shape.

    Raises:
        CheckpointError: it is not.
    """
    if part not in reader.infos:
        raise reader.error(part, "is missing from this checkpoint")
    info = reader.info(part)
    if info.dtype not in dtypes or tuple(info.shape) != shape:
        message = f"is {info.dtype} {listed(info.shape)}; it should be {' or '.join(dtypes)} {list(shape)}"
        raise reader.error(part, message)


LAYOUT = Layout(
    "GPTQ", "qweight", PARTS, _claims, _describe, _read,
    dtypes=("I32",), scales=("scales",), marks=("qweight",),
    configs={
        **dict.fromkeys(("gptq", "gptq_marlin", "gptqmodel"), _parse),
        **dict.fromkeys(("auto-round", "auto_round", "autoround", "intel/auto-round"), _parse_auto_round),
    },
    needs=_needs, methods=("gptq", "auto_round", "auto_gptq"),
)  # fmt: skip
