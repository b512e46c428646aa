"""Folders of MLC-LLM: raw shards, the file that lists them, its chat configuration; numbers by MLC's formula."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model
from foreign_files import awq_gemm, random_codes
from torch import Tensor

import isobit
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError, IsobitError, Unsupported
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.models.batch import Batch
from isobit.models.contents import contents
from isobit.models.planning import plans
from isobit.models.weights import load_model

Listed = dict[str, Any]
DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "float32",
    torch.int32: "uint32",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
}
OUTSIDE = ("e4m3_e4m3_f16", "e5m2_e5m2_f16", "q4f16_2", "q4f16_autoawq")  # which leave embeddings and the head
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def integers(n: int, k: int, bits: int, group: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """A random weight as MLC packs it, and its numbers in float16."""
    made = torch.Generator().manual_seed(seed)
    each, groups, most = 32 // bits, -(-k // group), (1 << bits) - 2
    codes = torch.randint(0, most + 1, (n, k), generator=made)
    scale = (torch.rand(n, groups, generator=made) * 0.02 + 0.001).half()
    padded = torch.zeros(n, groups * group, dtype=torch.int64)
    padded[:, :k] = codes
    words = (padded.view(n, -1, each) << torch.arange(0, each * bits, bits)).sum(-1)
    values = (codes - most // 2).half() * scale.repeat_interleave(group, 1)[:, :k]
    return {"q_weight": words.to(torch.uint32).view(torch.int32), "q_scale": scale}, values


def floats(n: int, k: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    made = torch.Generator().manual_seed(seed)
    codes = (torch.randn(n, k, generator=made) * 100).to(torch.float8_e4m3fn)
    scale = torch.tensor([0.0005]).bfloat16()
    return {"q_weight": codes, "q_scale": scale, "q_calibration_scale": torch.tensor([0.02]).bfloat16()}, (
        codes.float() * scale.float()
    )


def floats_without_scales(n: int, k: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    codes = (torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.05).to(torch.float8_e5m2)
    return {"q_weight": codes}, codes.float()


def awq(n: int, k: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """What AutoAWQ writes, as MLC takes it over."""
    weight = random_codes(n, k, 4, 128, seed=seed)
    return awq_gemm(weight), weight.values


KINDS: dict[str, Callable[[int, int, int], tuple[dict[str, Tensor], Tensor]] | None] = {
    "q4f16_1": lambda n, k, seed: integers(n, k, 4, 32, seed),
    "q4f16_0": lambda n, k, seed: integers(n, k, 4, 32, seed),
    "q4f16_2": lambda n, k, seed: integers(n, k, 4, 32, seed),
    "q3f16_1": lambda n, k, seed: integers(n, k, 3, 40, seed),
    "q3f16_0": lambda n, k, seed: integers(n, k, 3, 40, seed),
    "e4m3_e4m3_f16": floats,
    "e5m2_e5m2_f16": floats_without_scales,
    "q4f16_autoawq": awq,
    "q0f16": None,
}
FAMILIES = {"llama": ("LlamaForCausalLM", "qkv_proj"), "mistral": ("MistralForCausalLM", "qkv_proj"),
            "qwen2": ("Qwen2ForCausalLM", "c_attn"), "qwen3": ("Qwen3ForCausalLM", "c_attn")}  # fmt: skip


def joined(state: dict[str, Tensor], name: str, parts: tuple[str, ...]) -> None:
    """Puts matrices (and biases) of a layer below each other."""
    for end in ("weight", "bias"):
        for prefix in sorted({key.rsplit(parts[0], 1)[0] for key in state if key.endswith(f"{parts[0]}.{end}")}):
            state[f"{prefix}{name}.{end}"] = torch.cat([state.pop(f"{prefix}{part}.{end}") for part in parts])


def convert(folder: Path, model: Any, family: str, kind: str, cache: str = "tensor-cache.json") -> dict[str, Tensor]:
    """A model as MLC writes it, with random codes for its matrices; the numbers of the model that they make."""
    _, qkv = FAMILIES[family]
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    plain = dict(state)
    joined(state, qkv, ("q_proj", "k_proj", "v_proj"))
    joined(state, "gate_up_proj", ("gate_proj", "up_proj"))
    stored: dict[str, Tensor] = {}
    make, turned = KINDS[kind], kind.endswith("_0")
    for seed, (name, tensor) in enumerate(state.items()):
        module = name.removesuffix(".weight")
        outside = kind in OUTSIDE and module in ("lm_head", "model.embed_tokens")
        if make is None or tensor.dim() != 2 or outside:
            stored[name] = tensor
            continue
        parts, values = make(*tensor.shape, seed)
        if turned and module != "model.embed_tokens":
            parts = {part: one.t().contiguous() for part, one in parts.items()}
        stored |= {f"{module}.{part}": one for part, one in parts.items()}
        parent, _, last = module.rpartition(".")
        names = {qkv: ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}.get(last, (last,))
        rows = [len(plain[f"{parent}.{one}.weight" if parent else f"{one}.weight"]) for one in names]
        for one, part in zip(names, values.split(rows), strict=True):
            plain[f"{parent}.{one}.weight" if parent else f"{one}.weight"] = part.clone()
    write(folder, stored, config_of(model, family, kind), cache)
    return plain


def config_of(model: Any, family: str, kind: str) -> Listed:
    config = model.config
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
            "rms_norm_eps", "vocab_size", "tie_word_embeddings")  # fmt: skip
    said = {key: getattr(config, key) for key in keys} | {
        "head_dim": 32, "position_embedding_base": config.rope_parameters["rope_theta"], "context_window_size": 256,
        "prefill_chunk_size": 256, "tensor_parallel_shards": 1, "max_batch_size": 128, "rope_scaling": None,
    }  # fmt: skip
    if family == "mistral":
        said |= {"sliding_window_size": 16, "attention_sink_size": 4}
    return {"version": "0.1.0", "model_type": family, "quantization": kind, "model_config": said, "conv_template": "x"}


def write(folder: Path, tensors: dict[str, Tensor], config: Listed, cache: str = "tensor-cache.json") -> None:
    """Two shards, with what lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    records: list[Listed] = []
    names = sorted(tensors)
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        data, listed = bytearray(), []
        for name in part:
            tensor = tensors[name].contiguous()
            raw = tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() else b""
            narrowed = tensor.dtype == torch.bfloat16
            listed.append({"name": name, "shape": list(tensor.shape), "dtype": DTYPES[tensor.dtype],
                           "format": "f32-to-bf16" if narrowed else "raw", "nbytes": len(raw),
                           "byteOffset": len(data)})  # fmt: skip
            data += raw
        path = folder / f"params_shard_{number}.bin"
        path.write_bytes(data)
        records.append({"dataPath": path.name, "format": "raw-shard", "nbytes": len(data), "records": listed})
    (folder / cache).write_text(json.dumps({"metadata": {"ParamSize": len(names)}, "records": records}))
    (folder / "mlc-chat-config.json").write_text(json.dumps(config))


def tiny(family: str = "llama", kind: str = "") -> Any:
    more: dict[str, Any] = {
        "llama": {"attention_bias": False, "mlp_bias": False}, "qwen3": {"attention_bias": False},
        "mistral": {"sliding_window": 16}, "qwen2": {"use_sliding_window": False},
    }[family]  # fmt: skip
    more |= (
        SIZES
        | ({"intermediate_size": 256} if kind == "q4f16_autoawq" else {})
        | {"num_hidden_layers": 2, "tie_word_embeddings": False, "max_position_embeddings": 256}
    )
    return make_model(FAMILIES[family][0], rope_parameters={"rope_type": "default", "rope_theta": 5e5}, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_mlcs(tmp_path: Path, kind: str) -> None:
    plain = convert(tmp_path, tiny(kind=kind), "llama", kind)
    found = contents(Checkpoint.open(tmp_path))
    for name, values in plain.items():
        if values.dim() != 2:
            assert torch.equal(found.ck.read(name), values)
            continue
        for rows, columns in ((None, None), (slice(3, 20), None if kind[1] == "3" or "awq" in kind else slice(32, 96))):
            read = read_linear(found.ck, name.removesuffix(".weight"), rows, columns)
            got = read.weight.dequantize() if isinstance(read.weight, QTensor) else read.weight
            wanted = values[rows or slice(None), columns or slice(None)]
            assert torch.equal(got.to(wanted.dtype), wanted), name
            if kind == "e5m2_e5m2_f16" and "layers" in name:  # rounded as they are
                assert read.activations == ActSpec("e5m2", "tensor", dynamic=False) and read.input_scale == 1


@pytest.mark.parametrize("kind", ["q4f16_1", "q4f16_autoawq"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_run_as_transformers_with_those_numbers(tmp_path: Path, family: str, kind: str) -> None:
    model = tiny(family, kind)
    plain = convert(tmp_path, model, family, kind, "ndarray-cache.json" if family == "qwen3" else "tensor-cache.json")
    model.load_state_dict({name: tensor.float() for name, tensor in plain.items()})
    ids = torch.arange(40)[None] * 7 % 320
    with torch.no_grad():
        wanted = model(ids).logits[0]
    found = load_model(tmp_path, dtype="float32").forward(Batch.of(ids.tolist()))
    assert float((found - wanted).norm() / wanted.norm()) < 2e-3  # products rounded to float16 there


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("q4f16_1", "int4-g32"), ("q3f16_1", "int3-g8"), ("e4m3_e4m3_f16", "fp8-static"), ("q4f16_autoawq", "int4-asym"),
     ("e5m2_e5m2_f16", "e5m2 per tensor with activations e5m2 per tensor")],
)  # fmt: skip
def test_planned_described_quantized(tmp_path: Path, kind: str, scheme: str) -> None:
    folder = tmp_path / "m"
    convert(folder, tiny(kind=kind), "llama", kind)
    info, (_, ((plan,),)) = describe(folder), plans(folder, targets=("cpu-avx2",))
    assert str(info.quantization).strip("'") == ("awq" if "awq" in kind else "mlc")
    assert plan.action in ("native", "legalized") and not any("does not" in note for note in info.notes)
    use = next(use for use in info.schemes if use.kind == "linear")
    assert use.modules == 14 and (use.scheme == scheme or kind == "q3f16_1")
    with pytest.raises(IsobitError, match="--from-quantized"):
        isobit.quantize(folder, tmp_path / "out", "int8", progress=False)
    isobit.quantize(folder, tmp_path / "out", "int8-w8a16", progress=False, from_quantized=True)
    batch = Batch.of([[3, 1, 4, 1, 5]])
    one, two = (load_model(path, dtype="float32").forward(batch) for path in (folder, tmp_path / "out"))
    assert float((one - two).norm() / one.norm()) < 0.3


# ---------------------------------------------------------------------- what lies


def first(said: Listed) -> Listed:
    return said["records"][0]["records"][0]  # type: ignore[no-any-return]


BAD: dict[str, Callable[[Listed, Listed], Any]] = {
    "no records": lambda cache, config: cache.pop("records"),
    "records of numbers": lambda cache, config: cache.update(records=[1, 2]),
    "a shard that leads out": lambda cache, config: cache["records"][0].update(dataPath="../params_shard_0.bin"),
    "an absolute shard": lambda cache, config: cache["records"][0].update(dataPath="/etc/passwd"),
    "a shard that is missing": lambda cache, config: cache["records"][0].update(dataPath="params_shard_9.bin"),
    "a shard twice": lambda cache, config: cache["records"][1].update(dataPath="params_shard_0.bin"),
    "a shard of another kind": lambda cache, config: cache["records"][0].update(format="npz"),
    "a shorter shard": lambda cache, config: cache["records"][0].update(nbytes=17),
    "tensors of numbers": lambda cache, config: cache["records"][0].update(records=[7]),
    "no name": lambda cache, config: first(cache).pop("name"),
    "a name twice": lambda cache, config: cache["records"][1]["records"][0].update(name=first(cache)["name"]),
    "a shape of texts": lambda cache, config: first(cache).update(shape=["4"]),
    "a negative shape": lambda cache, config: first(cache).update(shape=[-4, -32]),
    "a huge shape": lambda cache, config: first(cache).update(shape=[1 << 40, 1 << 40]),
    "more bytes than it has": lambda cache, config: first(cache).update(nbytes=first(cache)["nbytes"] + 2),
    "beyond the shard": lambda cache, config: cache["records"][0]["records"][-1].update(byteOffset=1 << 40),
    "before the shard": lambda cache, config: first(cache).update(byteOffset=-8),
    "over another": lambda cache, config: cache["records"][0]["records"][1].update(byteOffset=0),
    "a dtype nobody knows": lambda cache, config: first(cache).update(dtype="float4"),
    "a format nobody knows": lambda cache, config: first(cache).update(format="zip"),
    "a dtype that is an object": lambda cache, config: first(cache).update(dtype={}),
    "a format that is a list": lambda cache, config: first(cache).update(format=[]),
    "a family that is a list": lambda cache, config: config.update(model_type=["llama"]),
    "a quantization that is an object": lambda cache, config: config.update(quantization={}),
    "another family": lambda cache, config: config.update(model_type="rwkv6"),
    "another quantization": lambda cache, config: config.update(quantization="q4f16_ft"),
    "quantized otherwise": lambda cache, config: config.update(quantization="q3f16_1"),
    "not quantized": lambda cache, config: config.update(quantization="q0f16"),
    "no sizes": lambda cache, config: config.pop("model_config"),
    "a size of text": lambda cache, config: config["model_config"].update(hidden_size="128"),
    "other heads": lambda cache, config: config["model_config"].update(num_attention_heads=8),
    "another width": lambda cache, config: config["model_config"].update(intermediate_size=192),
    "more layers": lambda cache, config: config["model_config"].update(num_hidden_layers=3),
    "a key nobody knows": lambda cache, config: config["model_config"].update(logit_softcap=30.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlc")
    convert(folder, tiny(), "llama", "q4f16_1")
    return folder


def changed(whole: Path, folder: Path, how: Callable[[Listed, Listed], Any]) -> Path:
    folder.mkdir()
    for file in whole.glob("*.bin"):
        (folder / file.name).write_bytes(file.read_bytes())
    cache, config = (json.loads((whole / name).read_text()) for name in ("tensor-cache.json", "mlc-chat-config.json"))
    how(cache, config)
    (folder / "tensor-cache.json").write_text(json.dumps(cache))
    (folder / "mlc-chat-config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", BAD)
def test_what_lies_is_refused_by_name(tmp_path: Path, whole: Path, name: str) -> None:
    folder = changed(whole, tmp_path / "m", BAD[name])
    with pytest.raises(
        IsobitError, match=r"cache\.json|chat-config|params_shard|model\.|MLC|q_weight|config\.json"
    ) as raised:
        load_model(folder)
    assert len(str(raised.value)) < 2000
    with pytest.raises(IsobitError):
        isobit.quantize(folder, tmp_path / "out", "int8", progress=False, from_quantized=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("e5m2_e5m2_f16", "e4m3_e4m3_f16"), ("e5m2_e5m2_f16", "q4f16_autoawq"), ("e4m3_e4m3_f16", "e5m2_e5m2_f16"),
     ("e4m3_e4m3_f16", "q4f16_autoawq")],
)  # fmt: skip
def test_what_is_said_to_be_of_another_kind_is_refused_by_all(tmp_path: Path, kind: str, said: str) -> None:
    folder = tmp_path / "m"
    convert(folder, tiny(kind=kind), "llama", kind)
    config = json.loads((folder / "mlc-chat-config.json").read_text())
    (folder / "mlc-chat-config.json").write_text(json.dumps(config | {"quantization": said}))
    why = r"q_proj\.q_weight' \(params_shard_1\.bin\) is F8_E\dM\d .*; it should be"
    with pytest.raises(IsobitError, match=why):
        plans(folder, targets=("cpu-avx2",))
    with pytest.raises(IsobitError, match=why):
        load_model(folder)
    assert any(re.search(why, note) for note in describe(folder).notes)


@pytest.mark.parametrize("kind", ["q4f16_1", "q3f16_1", "e4m3_e4m3_f16"])
def test_codes_that_are_said_to_be_plain_weights_are_mlcs(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "m"
    convert(folder, tiny(kind=kind), "llama", kind)
    config = json.loads((folder / "mlc-chat-config.json").read_text())
    (folder / "mlc-chat-config.json").write_text(json.dumps(config | {"quantization": "q0f16"}))
    why = r"q_weight': is quantized \(\w+\) as MLC does it, but no quantization is named: .*mlc-chat-config\.json"
    with pytest.raises(CheckpointError, match=why):
        plans(folder, targets=("cpu-avx2",))
    with pytest.raises(CheckpointError, match=why):
        load_model(folder)
    with pytest.raises(CheckpointError, match=why):
        isobit.quantize(folder, tmp_path / "out", "int8", progress=False)
    assert any(re.search(why, note) for note in describe(folder).notes)


def test_a_folder_without_a_tokenizer_says_where_one_is(whole: Path) -> None:
    """MLC's converter copies it; there is nothing to convert where nothing was copied."""
    with pytest.raises(CheckpointError, match=r"copy tokenizer\.json, .* from the model that this one was made of"):
        Tokenizer.from_folder(whole)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("q4f16_ft", "an order for CUTLASS"), ("e4m3_e4m3_f16_max_calibrate", "mlc_llm calibrate"),
     ("fp8_e4m3fn_bf16_block_scale", "the folder that it was made of")],
)  # fmt: skip
def test_what_is_not_read_is_refused_with_the_reason(tmp_path: Path, whole: Path, kind: str, why: str) -> None:
    folder = changed(whole, tmp_path / "m", lambda cache, config: config.update(quantization=kind))
    with pytest.raises(Unsupported, match=f"quantization is '{kind}' \\(.*{why}.*; isobit reads .*q4f16_autoawq"):
        load_model(folder)


@pytest.mark.parametrize("file", ["params_shard_1.bin", "tensor-cache.json", "mlc-chat-config.json"])
def test_what_is_cut_off_is_refused(tmp_path: Path, whole: Path, file: str) -> None:
    folder = changed(whole, tmp_path / "m", lambda cache, config: None)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: math.floor(len(data) * 0.9)])
    with pytest.raises(IsobitError, match=file.partition(".")[0]):
        load_model(folder)


def test_a_code_that_is_never_written(tmp_path: Path, whole: Path) -> None:
    folder = changed(whole, tmp_path / "m", lambda cache, config: None)
    cache = json.loads((folder / "tensor-cache.json").read_text())
    at = next(one for one in cache["records"][1]["records"] if one["name"].endswith("q_weight"))
    file = folder / "params_shard_1.bin"
    data = bytearray(file.read_bytes())
    data[at["byteOffset"]] = 0xFF
    file.write_bytes(data)
    with pytest.raises(IsobitError, match=r"params_shard_1.*q_weight.*15, which MLC never writes"):
        load_model(folder)
