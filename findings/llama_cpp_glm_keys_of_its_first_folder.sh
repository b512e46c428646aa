#!/usr/bin/env bash
# llama.cpp's convert_hf_to_gguf.py (the copy in llama-cpp-python 0.3.36), transformers 5.23.0
# A GLM-4 (GlmForCausalLM, the class of glm-4-9b-chat-hf, which the converter names among what it converts), saved by transformers with the
# rms_norm_eps of that model, 1.5625e-07, a context of 131072 tokens and a rope_theta of 5000000.
#
# Guess: the file says what config.json says, or the converter refuses.
# Seen:  the epsilon is 1e-5, the context the width of the model (hidden_size), and rope.freq_base 10000. It looks for the keys that
#        THUDM's own code has in its folders alone: layernorm_epsilon, seq_length and rope_ratio. With these beside them the file says the
#        right numbers. Widths, heads and layers are read under either name. No warning.
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
import conversion.chatglm

conversion.chatglm.ChatGLMModel.set_vocab = lambda self: None
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
END
cat > make.py << 'END'
import json
import shutil

import torch
import transformers as T

torch.manual_seed(0)
config = T.GlmConfig(
    vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, rms_norm_eps=1.5625e-07, max_position_embeddings=131072,
    rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}, pad_token_id=0, eos_token_id=2,
)  # fmt: skip
T.GlmForCausalLM(config).save_pretrained("saved")
shutil.copytree("saved", "both")
with open("saved/config.json") as file:
    keys = json.load(file)
with open("both/config.json", "w") as file:
    json.dump(keys | {"layernorm_epsilon": 1.5625e-07, "seq_length": 131072, "rope_ratio": 500}, file)
END
cat > look.py << 'END'
from gguf import GGUFReader

KEYS = ("attention.layer_norm_rms_epsilon", "context_length", "rope.freq_base", "embedding_length", "attention.head_count_kv")
found = {}
for name in ("saved", "both"):
    fields = GGUFReader(name + ".gguf").fields
    found[name] = [fields["chatglm." + key].contents() for key in KEYS]
    print("config.json as saved:" if name == "saved" else "with THUDM's keys too:", dict(zip(KEYS, found[name])))
same = all(
    abs(one - other) <= 1e-6 * other
    for name, seen in (("saved", [1e-5, 128, 1e4, 128, 2]), ("both", [1.5625e-07, 131072, 5e6, 128, 2]))
    for one, other in zip(found[name], seen)
)
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python make.py
for name in saved both; do
    quiet new/bin/python convert.py $name --outfile $name.gguf --outtype f32
done
quiet new/bin/python look.py
