"""The checkpoints that `interop.py` runs elsewhere: every scheme, and mixtures that other engines meet differently."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from isobit import api
from isobit.bundled import model_path
from isobit.formats.schemes import SCHEMES, scheme

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Case:
    """One checkpoint, and how to load it.

    Attributes:
        name: the scheme, or words for the mixture.
        scheme: of the linear layers.
        rules: as `isobit quantize --rule` takes them.
        tied: False to give the model a head of its own first.
        insist: quantize layers differently that engines fuse.
        dequantize: load with transformers' ``dequantize=True``.
        engine: the only one to ask; all if empty.
    """

    name: str
    scheme: str
    rules: tuple[tuple[str, str], ...] = ()
    tied: bool = True
    insist: bool = False
    dequantize: bool = False
    engine: str = ""

    @property
    def not_in_float32(self) -> bool:
        """Whether compressed-tensors gives its weights back in bfloat16, so that a float32 model cannot use them."""
        weights = scheme(self.scheme).weights
        return weights is not None and weights.scale is not None


CASES = (
    *(Case(name, name) for name in SCHEMES),
    *(Case(name, name) for name in ("int4-g64", "int4-asym-g32", "int3-g32", "w4a8-g32", "int8-w8a16-g128")),
    Case("int4; layers 0 and 1 fp8; down_proj kept", "int4", ((r"layers\.(0|1)\.", "fp8"), ("down_proj", "keep"))),
    Case("fp8; mlp int4-g32", "fp8", (("mlp", "int4-g32"),)),
    Case("int4; self_attn int8", "int4", (("self_attn", "int8"),)),
    Case("int8; k_proj and v_proj fp8", "int8", (("(k|v)_proj", "fp8"),), insist=True),
    Case("int8; up_proj fp8", "int8", (("up_proj", "fp8"),), insist=True),
    Case("fp8; q_proj kept", "fp8", (("q_proj", "keep"),), insist=True),
    Case("int8; embed_tokens int8-w8a16", "int8", (("embed_tokens", "int8-w8a16"),)),
    Case("fp8; embed_tokens fp8-w8a16", "fp8", (("embed_tokens", "fp8-w8a16"),)),
    Case("int4; embed_tokens int4-g32", "int4", (("embed_tokens", "int4-g32"),), tied=False),
    Case("int4; lm_head int4", "int4", (("lm_head", "int4"),), tied=False),
    Case("fp8; lm_head fp8", "fp8", (("lm_head", "fp8"),), tied=False),
    Case("int8; lm_head int8-w8a16", "int8", (("lm_head", "int8-w8a16"),), tied=False),
    Case("int4-asym; dequantize=True", "int4-asym", dequantize=True, engine="transformers"),
    Case("int8; dequantize=True", "int8", dequantize=True, engine="transformers"),
    Case(
        "int4; self_attn int8; dequantize=True",
        "int4",
        (("self_attn", "int8"),),
        dequantize=True,
        engine="transformers",
    ),
)


def make(case: Case, work: Path, layers: int | None = None) -> Path:
    """Quantizes the bundled model, or its first layers, as the case says; a folder that is there is left alone."""
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in case.name)
    folder = work / (name if layers is None else f"{name}-{layers}")
    if not (folder / "config.json").exists():
        api.quantize(
            source(work, case.tied, layers),
            folder,
            case.scheme,
            rules=case.rules,
            allow_mixed_fused=case.insist,
            progress=False,
        )
    return folder


def source(work: Path, tied: bool, layers: int | None) -> Path:
    """The bundled model, with a head of its own or fewer layers if that is asked for."""
    if tied and layers is None:
        return model_path()
    folder = work / f"source-{'tied' if tied else 'untied'}-{layers or 'all'}"
    if folder.exists():
        return folder
    shutil.copytree(model_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / WEIGHTS)
    if layers is not None:
        config["num_hidden_layers"] = layers
        tensors = {name: one for name, one in tensors.items() if layer_of(name) < layers}
    if not tied:
        config["tie_word_embeddings"] = False
        # Not the very same values: a reader may tie equal matrices again.
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.0625
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def layer_of(name: str) -> int:
    """The layer that a tensor belongs to; -1 if to none."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


def unrounded(folder: Path) -> Path | None:
    """A copy of a checkpoint whose activations are not rounded; None if they are not anyway."""
    config = json.loads((folder / "config.json").read_text())
    groups = config.get("quantization_config", {}).get("config_groups", {}).values()
    if not any(group["input_activations"] for group in groups):
        return None
    copy = folder.with_name(f"{folder.name}-unrounded")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("isobit*.json"), dirs_exist_ok=True)
    scales = (".input_scale", ".input_global_scale")
    tensors = {name: one for name, one in load_file(folder / WEIGHTS).items() if not name.endswith(scales)}
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    for group in groups:
        group["input_activations"] = None
    (copy / "config.json").write_text(json.dumps(config))
    return copy
