#!/usr/bin/env bash
# llama.cpp's convert_hf_to_gguf.py (the copy in llama-cpp-python 0.3.36), transformers 5.23.0
# A key of config.json that changes what transformers computes is set to another value than the published models': the activation of Llama and Qwen3,
# query_pre_attn_scalar of Gemma 2, swiglu_limit of gpt-oss, no_rope_layers of SmolLM3, clip_qkv of OLMoE, and clip_qkv of OLMo.
#
# Guess: the file says the value, or the converter refuses what its engine computes in one way alone.
# Seen:  OLMo's clip_qkv is said. Of the six others the file is that of the published value, byte for byte, and nothing is printed: an engine takes its
#        constants. GGUF has a key for clip_qkv, which OLMoE's part of the converter does not write.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 gguf==0.19.0 sentencepiece protobuf
quiet new/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz
cat > convert.py << 'END'
"""The converter without a tokenizer: a made one would have to be one that it knows."""

import importlib
import runpy
import sys

root = "llama_cpp_python-0.3.36/vendor/llama.cpp"
sys.path[:0] = [root, root + "/gguf-py"]
for name in ("gemma", "gpt_oss", "llama", "olmo", "qwen"):
    for model in vars(importlib.import_module("conversion." + name)).values():
        if isinstance(model, type) and "set_vocab" in vars(model):
            model.set_vocab = lambda self: None
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
END
cat > make.py << 'END'
import torch
import transformers as T

SIZES = dict(
    vocab_size=128, hidden_size=256, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
CASES = {
    "Llama": ({}, {"hidden_act": "gelu"}),
    "Qwen3": ({"head_dim": 64}, {"hidden_act": "gelu"}),
    "Gemma2": ({"head_dim": 64}, {"query_pre_attn_scalar": 100}),
    "GptOss": ({"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2}, {"swiglu_limit": 0.1}),
    "SmolLM3": ({}, {"no_rope_layers": [1, 0, 1, 0]}),
    "Olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, {"clip_qkv": 0.1}),
    "Olmo": ({}, {"clip_qkv": 0.1}),
}
for name, (sizes, changed) in CASES.items():
    logits = []
    for kind, more in (("one", {}), ("other", changed)):
        torch.manual_seed(0)
        made = getattr(T, name + "ForCausalLM")(getattr(T, name + "Config")(**SIZES, **sizes, **more)).eval()
        made.save_pretrained(f"{name}-{kind}/model")
        with torch.no_grad():
            logits.append(made(torch.arange(60)[None] * 7 % 125 + 3).logits)
    moved = float((logits[0] - logits[1]).abs().max())
    print(f"{name}: in transformers {changed} moves logits by up to {moved:.2g}")
    assert moved > 0.5
END
cat > look.py << 'END'
from pathlib import Path

found = {}
for one in sorted(Path().glob("*-one.gguf")):
    name = one.name.removesuffix("-one.gguf")
    found[name] = one.read_bytes() == Path(f"{name}-other.gguf").read_bytes()
    print(f"{name}: {'the same file' if found[name] else 'two files'}")
same = found == dict.fromkeys(("Llama", "Qwen3", "Gemma2", "GptOss", "SmolLM3", "Olmoe"), True) | {"Olmo": False}
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python make.py
for name in *-one *-other; do
    quiet new/bin/python convert.py $name/model --outfile $name.gguf --outtype f32
done
quiet new/bin/python look.py
