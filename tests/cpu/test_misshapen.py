"""No tensor reaches a kernel that is not what config.json asks for: families, file types, the kernels' own doors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ragged import ragged
from running import run
from safetensors.torch import save_file
from torch import Tensor

from isobit.errors import CheckpointError, FormatError, IsobitError, UsageError
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.kernels import reference
from isobit.kernels.cached import Cached
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import library
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec
from isobit.models.archs import ARCHS, family, model_config
from isobit.models.batch import Batch
from isobit.models.blueprint import expected_tensors
from isobit.models.cache.contiguous import ContiguousCache
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import quantize_weight

needs_kernels = pytest.mark.skipif(library.problem() is not None, reason=str(library.problem()))
LAYER = "model.layers.1."


@lru_cache
def made(architecture: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a small random model."""
    config = family(ARCHS[architecture]).tiny() | {
        "architectures": [architecture], "tie_word_embeddings": False, "hidden_size": 64, "intermediate_size": 96,
        "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40, "dtype": "float32",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    shapes = expected_tensors(model_config(config))
    return config, {name: torch.rand(shape, generator=generator) - 0.4 for name, shape in shapes.items()}


def store(folder: Path, kind: str, architecture: str, changes: dict[str, Tensor | None], **settings: Any) -> Path:
    config, tensors = made(architecture)
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | settings))
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def refused(folder: Path, tensor: str, why: str) -> None:
    """Loading and quantizing refuse, both name the tensor, nothing is written, and `info` says so."""
    for act in (load_model, lambda path: quantize(path, path / "../out", Policy(scheme("int8")), progress=False)):
        with pytest.raises(CheckpointError, match=f"(?s){tensor}.*{why}"):
            act(folder)
    assert not (folder / "../out").exists()


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda t: torch.cat([t, t[:1]]),
    "shorter": lambda t: t[:-1].clone(),
    "none": lambda t: t[:0].clone(),
    "one axis more": lambda t: t[None].clone(),
    "scalar": lambda t: t.reshape(-1)[0].clone(),
}
DTYPES = {"I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool, "C64": torch.complex64, "F64": torch.float64}
PLACES = {
    "LlamaForCausalLM": ("self_attn.o_proj.weight", "input_layernorm.weight"),
    "MistralForCausalLM": ("mlp.down_proj.weight", "post_attention_layernorm.weight"),
    "Qwen2ForCausalLM": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "Qwen3ForCausalLM": ("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
}
CASES = [(arch, LAYER + name) for arch, names in PLACES.items() for name in names]
CASES += [("LlamaForCausalLM", name) for name in ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight")]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(("architecture", "tensor"), CASES)
def test_shapes_and_dtypes_are_those_that_the_configuration_asks_for(
    tmp_path: Path, architecture: str, tensor: str, kind: str
) -> None:
    right = made(architecture)[1][tensor]
    for label, change in SHAPES.items():
        folder = store(tmp_path / label, kind, architecture, {tensor: change(right)})
        refused(folder, tensor, r"has shape \[.*config.json asks for")
        assert tensor in " ".join(describe(folder).notes)
    for name, dtype in DTYPES.items():
        folder = store(tmp_path / name, kind, architecture, {tensor: right.to(dtype)})
        refused(folder, tensor, f"dtype (is )?{name}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("architecture", "tensor"), [case for case in CASES if "proj.weight" not in case[1]][:-2])
def test_norms_and_biases_are_numbers(tmp_path: Path, architecture: str, tensor: str, value: float) -> None:
    damaged = made(architecture)[1][tensor].clone()
    damaged[3] = value
    folder = store(tmp_path / "model", "safetensors", architecture, {tensor: damaged})
    with pytest.raises(CheckpointError, match=f"{tensor}.*NaN or infinite"):
        load_model(folder)
    with pytest.raises(CheckpointError, match=f"{tensor}.*(NaN|infinite)"):
        quantize(folder, tmp_path / "out", Policy(scheme("int8")), progress=False)


def test_all_problems_are_listed_and_the_list_is_short(tmp_path: Path) -> None:
    tensors = made("LlamaForCausalLM")[1]
    missing: dict[str, Tensor | None] = {name: None for name in tensors if "mlp" in name}
    folder = store(tmp_path / "model", "safetensors", "LlamaForCausalLM", missing | {
        "model.norm.weight": torch.ones(3), "lm_head.weight": torch.ones(40, 64, dtype=torch.int16),
        **{f"other.{i}.weight": torch.ones(1) for i in range(50)},
    })  # fmt: skip
    with pytest.raises(CheckpointError, match="64 tensors do not fit") as caught:
        load_model(folder)
    text = str(caught.value)
    for part in ("up_proj", "is missing", "model.norm.weight", "dtype I16", "other.0.weight", "and 56 more"):
        assert part in text
    assert len(text) < 2000


def test_tensors_of_other_models_are_named(tmp_path: Path) -> None:
    names = {f"transformer.h.{i}.attn.c_attn.weight": torch.ones(2) for i in range(9)}
    without = dict.fromkeys(made("LlamaForCausalLM")[1])
    with pytest.raises(CheckpointError, match=r"(?s)is missing.*transformer.h.0"):
        load_model(store(tmp_path / "model", "safetensors", "LlamaForCausalLM", without | names))


# ---------------------------------------------------------------------- the kernels' own doors


def quantized(name: str, n: int = 24, k: int = 128) -> QTensor:
    row = scheme(name).weights
    assert row is not None
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    return quantize_weight(weight, row, search="absmax", scale_dtype=torch.float32)


WRONG: dict[str, dict[str, Any]] = {
    "short bias": {"bias": torch.ones(23)},
    "bias of two axes": {"bias": torch.ones(24, 1)},
    "scalar bias": {"bias": torch.tensor(1.0)},
    "complex bias": {"bias": torch.ones(24, dtype=torch.complex64)},
    "integer bias": {"bias": torch.ones(24, dtype=torch.int32)},
    "bias elsewhere": {"bias": torch.ones(24, device="meta")},
    "weight of three axes": {"weight": torch.ones(2, 3, 4)},
    "weight of integers": {"weight": torch.ones(24, 128, dtype=torch.int32)},
    "empty weight": {"weight": torch.ones(0, 128)},
    "no static scale": {"activations": scheme("fp8-static").activations},
    "static scale of zero": {"activations": scheme("fp8-static").activations, "input_scale": torch.zeros(1)},
    "two static scales": {"activations": scheme("fp8-static").activations, "input_scale": torch.ones(2)},
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize(
    "bind", [pytest.param(cpu.bind, marks=needs_kernels), reference.bind], ids=["cpu", "reference"]
)
def test_a_linear_is_bound_to_what_fits_it_only(bind: Callable[..., Any], case: str) -> None:
    given: dict[str, Any] = {"weight": quantized("fp8-static"), "activations": None, "input_scale": None, "bias": None}
    with pytest.raises(FormatError, match="a linear of shape"):
        bind(**(given | WRONG[case]))


@needs_kernels
def test_the_cpu_kernels_read_this_machine_s_memory_only() -> None:
    with pytest.raises(FormatError, match="this machine's memory"):
        cpu.bind(torch.ones(4, 8, device="meta"), None, None, None)
    bound = cpu.bind(torch.ones(4, 8), None, None, None)
    for x in (torch.ones(2, 8, device="meta"), torch.ones(2, 7)):
        with pytest.raises(ValueError, match="values"):
            bound(x)
        with pytest.raises(ValueError, match="do not share"):
            cpu.linears([bound, bound], x)


def attend(spec: AttentionSpec, *, keys: torch.Tensor, values: torch.Tensor, **others: Any) -> torch.Tensor:
    return cpu_layer.attention(spec, **others, held=Cached(keys, values))


@needs_kernels
def test_parts_of_a_layer_fit_together_or_nothing_runs() -> None:
    x, weight = torch.ones(1, 3, 32), torch.ones(32)
    for bad in (torch.ones(31), torch.ones(32, dtype=torch.bfloat16), torch.ones(64)[::2], torch.ones(1, 32)):
        with pytest.raises(FormatError, match="norm"):
            cpu_layer.norm(x, NormSpec(bad, 1e-5))
        with pytest.raises(FormatError, match="norm"):
            cpu_layer.add_norm(x, x, NormSpec(bad, 1e-5))
    for bad in (torch.ones(1, 3, 31), torch.ones(1, 2, 32), x.double(), torch.ones(1, 3, 64)[..., ::2]):
        for act in (cpu_layer.add, cpu_layer.gate, lambda a, b: cpu_layer.add_norm(a, b, NormSpec(weight, 1e-5))):
            with pytest.raises(FormatError, match="part of a layer"):
                act(x, bad)
    spec = AttentionSpec(4, 2, 8, q_norm=torch.ones(8), k_norm=torch.ones(8))
    right = {"q": torch.ones(6, 32), "k": torch.ones(6, 16), "v": torch.ones(6, 16), "cos": torch.ones(6, 8),
             "sin": torch.ones(6, 8), "keys": torch.ones(2, 2, 5, 8), "values": torch.ones(2, 2, 5, 8)}  # fmt: skip
    sequences = ragged([3, 3], [2, 2], 5)
    attend(spec, **right, sequences=sequences)
    for name, value in right.items():
        for bad in (value[:, 1:].clone(), value.double(), value.to("meta")):
            with pytest.raises(FormatError, match="on the CPU, not"):
                attend(spec, **(right | {name: bad}), sequences=sequences)
    with pytest.raises(FormatError, match="norm of keys"):
        attend(AttentionSpec(4, 2, 8, k_norm=torch.ones(7)), **right, sequences=sequences)
    with pytest.raises(FormatError, match="cached keys"):
        attend(spec, **right, sequences=ragged([3, 3], [2, 2], 6))
    with pytest.raises(IsobitError, match="neither a multiple of 64"):
        attend(spec, **right, sequences=ragged([3, 3], [3, 2], 5))
    for name in ("starts", "lengths", "table", "slots"):
        part = getattr(sequences, name)
        for bad in (part.float(), part[None], part.repeat_interleave(2, 0)[::2], part.to("meta"), part[:-1].clone()):
            with pytest.raises(FormatError, match="on the CPU, not"):
                attend(spec, **right, sequences=replace(sequences, **{name: bad}))


@pytest.mark.parametrize("kernel", ["reference", pytest.param("cpu", marks=needs_kernels)])
@torch.inference_mode()
def test_a_model_takes_its_own_cache_and_its_own_tokens(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    model = load_model(store(tmp_path / "model", "safetensors", "LlamaForCausalLM", {}))
    other = load_model(store(tmp_path / "other", "safetensors", "Qwen3ForCausalLM", {}, dtype="float32"))
    other.config = model_config(made("Qwen3ForCausalLM")[0] | {"num_key_value_heads": 4})
    ids = torch.tensor([[1, 2, 3]])
    strange, own = other.new_cache(1, 8), model.new_cache(1, 8)
    for batch, cache in ((strange.next(ids), strange), (Batch.of(list(ids)), own), (own.next(ids), strange)):
        with pytest.raises(UsageError, match="was not made for this model and batch"):
            model.forward(batch, cache)
    for wrong in (torch.tensor(1), torch.tensor([[1]])):
        with pytest.raises(UsageError, match=r"token ids \[T\]"):
            Batch.of([wrong])
    with pytest.raises(UsageError, match=r"embeddings \[T, 64\]"):
        run(model, torch.ones(1, 2, 63))
    for beyond in (40, -1):
        with pytest.raises(UsageError, match="beyond the vocabulary of 40"):
            run(model, torch.tensor([[1, beyond]]))
    rules = Policy(scheme("int8"), (Rule("embed_tokens", "int8-w8a16"),))
    quantize(tmp_path / "model", tmp_path / "quantized", rules, progress=False)
    small = load_model(tmp_path / "quantized")
    assert isinstance(small.embed_tokens.weight, QTensor)
    for beyond in (40, -1):
        with pytest.raises(UsageError, match="beyond the vocabulary of 40"):
            run(small, torch.tensor([[1, beyond]]))


@needs_kernels
@torch.inference_mode()
def test_all_layers_in_one_call_take_what_fits_them(tmp_path: Path) -> None:
    model = load_model(store(tmp_path / "model", "safetensors", "LlamaForCausalLM", {}))
    run(model, torch.tensor([[1, 2]]))
    assert model.why_by_layer is None and not isinstance(model._stack, str)
    step, stack = model._step(Batch.of([[1, 2]]), None), model._stack
    stack(torch.ones(2, 64), step)
    for bad in (torch.ones(2, 63), torch.ones(2, 64).bfloat16(), torch.ones(2, 64, device="meta")):
        with pytest.raises(FormatError, match="the residual stream"):
            stack(bad, step)
    narrow = model_config(made("LlamaForCausalLM")[0] | {"head_dim": 8})
    cache = ContiguousCache(narrow, 1, 2, torch.float32)
    with pytest.raises(FormatError, match="cached keys"):
        stack(torch.ones(2, 64), replace(step, memory=cache.memory))
    own = model.new_cache(1, 8)
    own.stride = 10**6 * (own.stride or 0)
    with pytest.raises(FormatError, match="does not hold 2 layers"):
        model.forward(own.next([[1, 2]]), own)
    for name in ("input_layernorm", "post_attention_layernorm"):
        other = load_model(tmp_path / "model")
        norm = getattr(other.layers[1], name)
        norm.spec = replace(norm.spec, weight=torch.ones(63))
        with pytest.raises(FormatError, match="norm before"):
            run(other, torch.tensor([[1, 2]]))
