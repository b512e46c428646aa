"""What is said of a GGUF file is said by the names that it has, of every family, and of what is missing, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gguf_writer import LLAMA, gguf, llama_tensors, write, zeros

from isobit.checkpoint.gguf.families import FAMILIES
from isobit.checkpoint.gguf.names import OUTSIDE
from isobit.checkpoint.gguf.wording import KEYS, in_its_words, notes_in_its_words, reworded
from isobit.errors import CheckpointError, ModelError, Unsupported
from isobit.models.planning import plans

# Rows that no file names -> what llama.cpp calls the family, and keys that tell it from another.
_TOLD_BY_KEYS = {
    "mixtral": ("llama", {"expert_count": 4}),
    "ministral3": ("mistral3", {"attention.temperature_scale": 0.1}),
    "olmo3": ("olmo2", {"attention.sliding_window": 8}),
    "deepseek3": ("deepseek2", {"expert_gating_func": 2}),
}


def file_of(folder: Path, family: str) -> Path:
    """A file of a family that has none of its tensors but an embedding."""
    arch, more = _TOLD_BY_KEYS.get(family, (family, {}))
    keys = {"attention.head_count": 4, "block_count": 2} | more
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items()}
    return write(folder / "m.gguf", gguf(metadata, [zeros("token_embd.weight", 8, 64)]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_family_has_a_way_back(tmp_path: Path, family: str) -> None:
    path, names = file_of(tmp_path, family), FAMILIES[family].names
    wanted = {f"model.layers.1.{module}.bias": f"blk.1.{part}.bias" for part, module in names.layer.items()}
    wanted |= {f"model.layers.1.{module.format(3)}.weight": f"blk.1.{part}_exps.weight, expert 3"
               for part, module in names.experts.items()}  # fmt: skip
    wanted |= {f"model.layers.0.{name}": f"blk.0.{part}" for part, name in names.whole.items()}
    wanted |= {f"{module}.weight": f"{part}.weight" for part, module in OUTSIDE.items()}
    if names.latent:
        wanted |= {"model.layers.1.self_attn.kv_b_proj.bias": "blk.1.attn_k_b.bias (and attn_v_b.bias)"}
    texts = [f"tensor '{name}' is missing" for name in wanted]
    assert reworded(path, *texts) == [f"tensor '{name}' is missing" for name in wanted.values()]
    said = reworded(path, *(f"config.json: rope_parameters: {key} = 3: is wrong" for key in KEYS))
    experts = family in ("gpt-oss", "hunyuan-moe", "llama4", "minimax-m2")
    there = KEYS | ({"intermediate_size": "expert_feed_forward_length"} if experts else {})
    for key, text in zip(there.values(), said, strict=True):
        assert re.fullmatch(
            rf"the metadata of m\.gguf: [\w-]+\.{re.escape(key.partition(' ')[0])}.* = 3: is wrong", text
        )


def test_a_file_of_its_own_names(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf(LLAMA, llama_tensors()))
    assert reworded(path, f"{path}/config.json: head_dim = 3 is odd") == [
        f"{path}: llama.attention.key_length = 3 is odd"
    ]
    assert reworded(path, "divided by a factor of rope") == ["divided by a factor of rope"]  # a word, and no key
    assert notes_in_its_words(path, ["see num_hidden_layers"]) == ("see llama.block_count",)
    assert notes_in_its_words(tmp_path, ["see num_hidden_layers"]) == ("see num_hidden_layers",)
    assert notes_in_its_words(None, ["see num_hidden_layers"]) == ("see num_hidden_layers",)


def test_errors_keep_what_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf(LLAMA, llama_tensors()))
    name, said = "model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"
    with pytest.raises(CheckpointError) as caught, in_its_words(path), in_its_words(path):
        raise CheckpointError("holds NaN", file=path, tensor=name)
    assert caught.value.tensor == said and str(caught.value) == f"{path}: tensor {said!r}: holds NaN"
    with pytest.raises(Unsupported) as refused, in_its_words(path):
        raise Unsupported("hidden_size", ["lm_head.weight is\x1b odd"], "leave hidden_size")
    assert refused.value.what == "llama.embedding_length" and refused.value.reasons == ("output.weight is\x1b odd",)
    assert "\x1b" not in str(refused.value) and refused.value.instead == "leave llama.embedding_length"
    with pytest.raises(ModelError, match=r"^config\.json"), in_its_words(tmp_path):
        raise ModelError("config.json: hidden_size is no GGUF's")


@pytest.mark.parametrize(
    ("keys", "drop", "why"),
    [
        ({"llama.context_length": 1 << 31}, "", r"^the metadata of m\.gguf: llama\.context_length = 2147483648: exp"),
        ({"llama.rope.freq_base": -2.0}, "", r"^the metadata of m\.gguf: llama\.rope\.freq_base = -2\.0: expected"),
        ({"llama.attention.layer_norm_rms_epsilon": 7.0}, "", r"llama\.attention\.layer_norm_rms_epsilon = 7\.0: expe"),
        ({"llama.attention.head_count_kv": 3}, "", r"attention\.head_count = 4: is not .*attention\.head_count_kv = 3"),
        ({"llama.feed_forward_length": 95}, "", r"3 tensors do not fit the metadata:\n.*blk\.0\.ffn_gate\.weight"),
        ({}, "blk.0.attn_k.weight", r"m\.gguf: tensor 'blk\.0\.attn_k\.weight': is missing"),
        ({}, "output_norm.weight", r"m\.gguf: tensor 'output_norm\.weight': is missing"),
    ],
)  # fmt: skip
def test_plans_speak_so(tmp_path: Path, keys: dict[str, object], drop: str, why: str) -> None:
    tensors = [one for one in llama_tensors() if one.name != drop]
    path = write(tmp_path / "m.gguf", gguf(LLAMA | keys, tensors))
    with pytest.raises((CheckpointError, ModelError), match=why) as caught:
        plans(path, targets=["cpu-avx2"])
    assert not re.search(r"config\.json|model\.|lm_head|hidden_size|num_", str(caught.value).replace(str(path), ""))
