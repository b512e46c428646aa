#!/usr/bin/env bash
# transformers 5.23.0, Phi-3 with longrope
# A prompt of 8 tokens alone, and in a batch beside one of 32, with an attention mask and its own positions. The original
# context is 16 tokens, so that the one is a short sequence and the other a long one.
#
# Guess: a batch gives each sequence what it gets alone, as with default rope: here, the short one the short factors.
# Seen:  one set of factors for the whole batch, by its highest position. Beside 16 tokens the short prompt's log-probabilities
#        are the same to 1e-5; beside 17 they move by 1.7. Without position_ids padding counts too: a prompt without a neighbour, but
#        padded to 17, moves alike.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
import transformers as T
from tiny import end

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
LONGROPE = DEFAULT | {
    "rope_type": "longrope",
    "short_factor": [1.0] * 16,
    "long_factor": [1 + i / 2 for i in range(16)],
}
SHORT, LONG = list(range(3, 11)), list(range(3, 35))


def moved(rope: dict, length: int, beside: bool = True, positions: bool = True) -> float:
    """How far log-probabilities of the short prompt are from those alone, padded at its end to a length."""
    torch.manual_seed(0)
    config = T.Phi3Config(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=dict(rope),
        initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = T.Phi3ForCausalLM(config).eval()
    padding = length - len(SHORT)
    ids = torch.tensor([SHORT + [0] * padding, LONG[:length]][: 1 + beside])
    mask = torch.tensor([[1] * len(SHORT) + [0] * padding, [1] * length][: 1 + beside])
    more = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if positions else {}
    with torch.no_grad():
        alone = model(torch.tensor([SHORT])).logits[0].log_softmax(-1)
        batch = model(ids, attention_mask=mask, **more).logits[0, : len(SHORT)].log_softmax(-1)
    return float((batch - alone).abs().max())


same = {
    "default rope, beside 32 tokens": moved(DEFAULT, 32),
    "longrope, beside 16": moved(LONGROPE, 16),
    "longrope, padded to 32 with positions, no neighbour": moved(LONGROPE, 32, beside=False),
}
other = {
    "longrope, beside 17": moved(LONGROPE, 17),
    "longrope, beside 32": moved(LONGROPE, 32),
    "longrope, padded to 17 without positions, no neighbour": moved(LONGROPE, 17, beside=False, positions=False),
}
for name, value in (same | other).items():
    print(f"{name}: moved by {value:.2g}")
end(max(same.values()) < 1e-4 and min(other.values()) > 0.1)
END
quiet new/bin/python run.py
