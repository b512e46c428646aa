#!/usr/bin/env bash
# llama.cpp's convert_hf_to_gguf.py (the copy in llama-cpp-python 0.3.36), transformers 5.23.0
# Mistral, Mixtral, Qwen2, Qwen3 and SmolLM3, each with attention to everything and with a sliding window, and Gemma 2 with two windows, are saved
# by transformers and converted.
#
# Guess: the file says the window (GGUF has a key for it, "attention.sliding_window"), or the converter refuses what it cannot say.
# Seen:  it does in Gemma 2. Of the other five the two files are the same, byte for byte, without a warning: past the window such a file is another
#        model (logits move by whole units here).
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 gguf==0.19.0 sentencepiece protobuf
quiet new/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz
cat > convert.py << 'END'
"""The converter without a tokenizer: a made one would have to be one that it knows."""

import runpy
import sys

root = "llama_cpp_python-0.3.36/vendor/llama.cpp"
sys.path[:0] = [root, root + "/gguf-py"]
import conversion.gemma
import conversion.llama
import conversion.qwen

for model in (conversion.gemma.Gemma2Model, conversion.llama.LlamaModel, conversion.llama.SmolLM3Model):
    model.set_vocab = lambda self: None
for model in (conversion.qwen.Qwen2Model, conversion.qwen.Qwen3Model):
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
LATE = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
PAIRS = {
    "Mistral": ({"sliding_window": None}, {"sliding_window": 8}),
    "Mixtral": ({"sliding_window": None, "num_local_experts": 4}, {"sliding_window": 8, "num_local_experts": 4}),
    "Qwen2": ({}, LATE),
    "Qwen3": ({"head_dim": 64}, LATE | {"head_dim": 64}),
    "SmolLM3": ({}, {"use_sliding_window": True, "sliding_window": 8}),
    "Gemma2": ({"head_dim": 64, "sliding_window": 64}, {"head_dim": 64, "sliding_window": 8}),
}
for name, pair in PAIRS.items():
    logits = []
    for kind, changed in zip(("one", "other"), pair):
        torch.manual_seed(0)
        made = getattr(T, name + "ForCausalLM")(getattr(T, name + "Config")(**SIZES, **changed)).eval()
        made.save_pretrained(f"{name}-{kind}/model")
        with torch.no_grad():
            logits.append(made(torch.arange(60)[None] * 7 % 125 + 3).logits)
    moved = float((logits[0] - logits[1]).abs().max())
    print(f"{name}: in transformers the window moves logits by up to {moved:.2g}")
    assert moved > 0.5
END
cat > look.py << 'END'
from pathlib import Path

from gguf import GGUFReader

found = {}
for one in sorted(Path().glob("*-one.gguf")):
    name = one.name.removesuffix("-one.gguf")
    other = Path(f"{name}-other.gguf")
    found[name] = one.read_bytes() == other.read_bytes(), any("sliding_window" in key for key in GGUFReader(other).fields)
    print(f"{name}: {'the same file' if found[name][0] else 'two files'}, {'with' if found[name][1] else 'without'} a key for the window")
same = found == {name: (True, False) for name in ("Mistral", "Mixtral", "Qwen2", "Qwen3", "SmolLM3")} | {"Gemma2": (False, True)}
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python make.py
for name in *-one *-other; do
    quiet new/bin/python convert.py $name/model --outfile $name.gguf --outtype f32
done
quiet new/bin/python look.py
