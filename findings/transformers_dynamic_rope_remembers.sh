#!/usr/bin/env bash
# transformers 5.23.0, Llama with dynamic NTK rope ("rope_type": "dynamic"), trained for 64 tokens
# The same prompt before and after one of 256 tokens: each in a call of its own, without a cache.
#
# Guess: a short prompt after a long one is computed as if it had come first: its own length gives its base.
# Seen:  only up to 63 tokens. From 64 tokens on, its trained length itself included, up to the longest that the model has ever seen it
#        keeps the base of that one: log-probabilities of 64 tokens move by 4.8, those of 100 by 5.3. A prompt of fewer than 64 tokens in between
#        puts everything back. So what a prompt gives depends on what the process was asked before.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
import transformers as T
from tiny import end

TRAINED, LONG = 64, 256
torch.manual_seed(0)
config = T.LlamaConfig(
    vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=TRAINED, initializer_range=0.1,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
)  # fmt: skip
model = T.LlamaForCausalLM(config).eval()


def run(tokens: int) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(tokens)[None] * 7 % 256, use_cache=False).logits[0].log_softmax(-1)


moved = {}
for tokens in (16, TRAINED - 1, TRAINED, 100, 200):
    run(16)  # puts everything back
    before = run(tokens)
    again = float((run(tokens) - before).abs().max())
    run(LONG)
    after = float((run(tokens) - before).abs().max())
    run(LONG), run(16)
    healed = float((run(tokens) - before).abs().max())
    moved[tokens] = again, after, healed
    print(f"{tokens} tokens: twice {again:.2g}, after {LONG} tokens {after:.2g}, after {LONG} and 16 {healed:.2g}")
end(
    all(again == healed == 0 for again, _, healed in moved.values())
    and all((after == 0) == (tokens < TRAINED) for tokens, (_, after, _) in moved.items())
    and min(after for tokens, (_, after, _) in moved.items() if tokens >= TRAINED) > 0.1
)
END
quiet new/bin/python run.py
