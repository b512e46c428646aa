#!/usr/bin/env bash
# transformers 5.23.0
# yarn with "truncate": false (as gpt-oss has it) in a flat rope_parameters, and in one that is nested by type of layer (OLMo 3, Gemma 3).
#
# Guess: it means the same in both: the ends of the ramp are not rounded to whole dimensions.
# Seen:  flat it does. Nested it is ignored, without a word: frequencies are those of true, to the bit, though factor, which stands
#        beside it, counts. It is looked for one level up, beside the types of layers, and counts there.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
import transformers as T
from tiny import end

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 1024}


def frequencies(name: str, above: dict | None = None, **more: object) -> torch.Tensor:
    """Inverse frequencies of layers with full attention; above: what stands beside the types of layers."""
    size = {
        "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 8192, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "rope_parameters": YARN | more,
    }  # fmt: skip
    if name != "Llama":
        size["layer_types"] = ["full_attention", "sliding_attention"]
        size["rope_parameters"] = {"full_attention": YARN | more, "sliding_attention": dict(DEFAULT)}
        size["rope_parameters"] |= above or {}
    config = getattr(T, {"Gemma3": "Gemma3Text"}.get(name, name) + "Config")(**size)
    buffers = dict(getattr(T, f"{name}ForCausalLM")(config).model.rotary_emb.named_buffers())
    return buffers["inv_freq" if name == "Llama" else "full_attention_inv_freq"]


moved = {}
for name in ("Llama", "Olmo3", "Gemma3"):
    plain = frequencies(name)
    others = [frequencies(name, truncate=False), frequencies(name, factor=4.0)]
    if name != "Llama":
        others.append(frequencies(name, {"truncate": False}))
    moved[name] = [int((other != plain).sum()) for other in others]
    print(f"{name}: of {plain.numel()} frequencies truncate=False moves {moved[name][0]}, factor=4 {moved[name][1]}", end="")
    print("" if name == "Llama" else f", truncate=False one level up {moved[name][2]}")
end(
    all(counts[1] > 0 for counts in moved.values())
    and moved["Llama"][0] > 0
    and all(moved[name][0] == 0 and moved[name][2] > 0 for name in ("Olmo3", "Gemma3"))
)
END
quiet new/bin/python run.py
