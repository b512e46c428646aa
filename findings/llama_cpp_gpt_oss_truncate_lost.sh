#!/usr/bin/env bash
# llama.cpp's convert_hf_to_gguf.py (the copy in llama-cpp-python 0.3.36), transformers 5.23.0
# gpt-oss with yarn and "truncate": false, as OpenAI publishes it, and the same model with true: transformers gives them other frequencies.
#
# Guess: the GGUF file says which, as it says factor, beta_fast and beta_slow.
# Seen:  the two files are the same, byte for byte: there is no key for it, and no warning. Whoever reads such a file has to know that gpt-oss
#        does not round the ends of yarn's ramp to whole dimensions.
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
import conversion.gpt_oss

conversion.gpt_oss.GptOssModel.set_vocab = lambda self: None
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
END
cat > make.py << 'END'
import torch
import transformers as T

YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
YARN |= {"original_max_position_embeddings": 4096, "truncate": False}
logits = {}
for name, changed in (("false", {}), ("true", {"truncate": True}), ("factor", {"factor": 16.0})):
    torch.manual_seed(0)
    config = T.GptOssConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.1,
        rope_parameters=YARN | changed,
    )  # fmt: skip
    model = T.GptOssForCausalLM(config).eval()
    model.save_pretrained(name + "/model")
    with torch.no_grad():
        logits[name] = model(torch.arange(40)[None] * 7 % 256).logits
moved = {name: float((one - logits["false"]).abs().max()) for name, one in logits.items()}
print(f"transformers: truncate=True moves logits by {moved['true']:.2g}, factor=16 by {moved['factor']:.2g}")
raise SystemExit(not min(moved["true"], moved["factor"]) > 0.01)
END
cat > look.py << 'END'
from pathlib import Path

from gguf import GGUFReader

data = {name: Path(name + ".gguf").read_bytes() for name in ("false", "true", "factor")}
keys = [key for key in GGUFReader("false.gguf").fields if ".rope." in key]
print("keys of rope:", *keys)
equal = {name: one == data["false"] for name, one in data.items()}
for name, words in (("true", "truncate=True"), ("factor", "factor=16")):
    print(f"the file of {words} is", "the same to the byte" if equal[name] else "another")
same = equal["true"] and not equal["factor"] and len(keys) == 6 and not any("trunc" in key for key in keys)
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python make.py
for name in false true factor; do
    quiet new/bin/python convert.py $name/model --outfile $name.gguf --outtype f32
done
quiet new/bin/python look.py
