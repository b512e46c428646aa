#!/usr/bin/env bash
# transformers 5.23.0, Phi-3.5-MoE (PhimoeForCausalLM) and Phi-3 with longrope, both trained for 16 tokens
# Which of the factors move the logits of a prompt of 16 tokens, and of one of 40.
#
# Guess: as in Phi-3: the short factors those of 16, the long ones those of 40.
# Seen:  Phi-3 does. Phi-3.5-MoE always takes the short factors; changing the long ones moves nothing, to the bit, at any length. long_mscale
#        beside them does count from 17 tokens on, so that long prompts are computed with the scale of the one and the factors of the other.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
import transformers as T
from tiny import end

ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 16, "long_factor": [1 + i / 2 for i in range(16)],
    "original_max_position_embeddings": 16,
}  # fmt: skip
SIZES = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "original_max_position_embeddings": 16,
    "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def logits(name: str, tokens: int, **changed: object) -> torch.Tensor:
    torch.manual_seed(0)
    more, rope = {}, ROPE | changed
    if name == "Phimoe":
        more = {"num_local_experts": 4}
        rope = {"short_mscale": 1.2, "long_mscale": 1.2, "factor": 4.0} | rope
    config = getattr(T, name + "Config")(**SIZES, **more, rope_parameters=rope)
    model = getattr(T, name + "ForCausalLM")(config).eval()
    with torch.no_grad():
        return model(torch.arange(tokens)[None] * 7 % 256).logits[0]


def moved(name: str, tokens: int, key: str, value: object) -> float:
    return float((logits(name, tokens, **{key: value}) - logits(name, tokens)).abs().max())


found = {}
for name in ("Phi3", "Phimoe"):
    for tokens in (16, 40):
        keys = {"short_factor": [3.0] * 16, "long_factor": [2.0] * 16}
        if name == "Phimoe":
            keys["long_mscale"] = 1.4
        for key, value in keys.items():
            found[name, tokens, key] = moved(name, tokens, key, value)
        print(f"{name}, {tokens} tokens: " + ", ".join(f"{key} moves {found[name, tokens, key]:.2g}" for key in keys))
counts = {key for key, value in found.items() if value > 0.1}
none = {key for key, value in found.items() if value == 0}
end(
    counts | none == set(found)
    and counts
    == {
        ("Phi3", 16, "short_factor"), ("Phi3", 40, "long_factor"), ("Phimoe", 16, "short_factor"),
        ("Phimoe", 40, "short_factor"), ("Phimoe", 40, "long_mscale"),
    }  # fmt: skip
)
END
quiet new/bin/python run.py
