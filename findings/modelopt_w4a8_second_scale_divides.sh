#!/usr/bin/env bash
# nvidia-modelopt 0.47.0, with transformers 5.23.0
# A small Llama is quantized with ModelOpt's W4A8_AWQ_BETA_CFG and exported by export_hf_checkpoint: 4-bit codes, weight_scale
# (one for 128 columns of a row) and weight_scale_2 (one number), activations and products in e4m3.
#
# Guess: weight = e4m3(code * weight_scale) * weight_scale_2: both scales multiply, as those of ModelOpt's NVFP4 under the same names.
# Seen:  weight = e4m3(code * weight_scale / weight_scale_2) * weight_scale_2: weight_scale alone gives the weight, and weight_scale_2 only
#        scales its rounding to e4m3. That is, bit for bit, what ModelOpt's own quantizer computes; by the guess weights come out a
#        thousand times too small. config.json and hf_quant_config.json name neither.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 nvidia-modelopt==0.47.0 accelerate requests
cat > run.py << 'END'
import sys

import modelopt.torch.quantization as mtq
import torch
import transformers as T
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file

torch.manual_seed(0)
config = T.LlamaConfig(
    vocab_size=256, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256, initializer_range=0.1, architectures=["LlamaForCausalLM"],
)  # fmt: skip
model = T.LlamaForCausalLM(config)
model = mtq.quantize(model, mtq.W4A8_AWQ_BETA_CFG, lambda model: model(torch.randint(0, 256, (4, 64))))
name = "model.layers.0.mlp.down_proj"
module = model.get_submodule(name)
with torch.no_grad():
    meant = module.weight_quantizer(module.weight).float()  # what it multiplies by itself
export_hf_checkpoint(model, export_dir="made")

file = load_file("made/model.safetensors")
for part in ("weight", "weight_scale", "weight_scale_2"):
    tensor = file[f"{name}.{part}"]
    print(f"{part}: {tensor.dtype} {list(tensor.shape)}, largest {float(tensor.max()):.4g}")
packed, scale, over = (file[f"{name}.{part}"] for part in ("weight", "weight_scale", "weight_scale_2"))
codes = torch.stack((packed & 15, packed >> 4), dim=1).flatten(0, 1).float()  # two rows a byte
codes -= 16 * (codes > 7)
values = codes * scale.float().repeat_interleave(128, dim=1)
guess = values.to(torch.float8_e4m3fn).float() * over
seen = (values / over).to(torch.float8_e4m3fn).float() * over
wrong = [float((found - meant).norm() / meant.norm()) for found in (guess, seen, values)]
equal = float((seen == meant).float().mean())
print(f"relative error of the guess {wrong[0]:.4f}, of what is seen {wrong[1]:.2g}, without the second scale {wrong[2]:.4f}")
print(f"largest weight {float(meant.abs().max()):.4f}, by the guess {float(guess.abs().max()):.6f}; equal as seen: {equal:.2%}")
as_found = wrong[0] > 0.9 and wrong[1] < 1e-4 and wrong[2] > 0.01
print("as found" if as_found else "CHANGED")
sys.exit(not as_found)
END
quiet new/bin/python run.py
