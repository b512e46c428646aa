#!/usr/bin/env bash
# transformers 5.23.0, Gemma 2 and the text of Gemma 3
# attn_logit_softcapping, which the configurations of both document ("when applying tanh softcapping on the attention scores").
#
# Guess: it caps scores in both.
# Seen:  in Gemma 2 it does. Gemma 3 stores it in each layer and never hands it on: with a cap of 0.01, which all but makes attention even,
#        logits are the same to the bit, by eager attention, which would have a cap, and by sdpa, which Gemma 2 refuses as it has none.
#        final_logit_softcapping, beside it, counts.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
import transformers as T
from tiny import end

IDS = torch.arange(40)[None] * 7 % 256


def logits(name: str, attention: str, **caps: float) -> torch.Tensor:
    torch.manual_seed(0)
    config = {"Gemma2": T.Gemma2Config, "Gemma3": T.Gemma3TextConfig}[name](
        vocab_size=256, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, initializer_range=0.1, attn_implementation=attention,
        **({"attn_logit_softcapping": None, "final_logit_softcapping": None} | caps),
    )  # fmt: skip
    with torch.no_grad():
        return getattr(T, name + "ForCausalLM")(config).eval()(IDS).logits[0]


found = {}
for name, attention in (("Gemma2", "eager"), ("Gemma3", "eager"), ("Gemma3", "sdpa")):
    plain = logits(name, attention)
    caps = {"attn_logit_softcapping": 0.01, "final_logit_softcapping": 1.0}
    found[name, attention] = [float((logits(name, attention, **{key: cap}) - plain).abs().max()) for key, cap in caps.items()]
    words = ", ".join(f"{key}={cap} moves {moved:.2g}" for (key, cap), moved in zip(caps.items(), found[name, attention]))
    print(f"{name}, {attention}: {words}")
end(
    all(final > 0.1 for _, final in found.values())
    and found["Gemma2", "eager"][0] > 0.1
    and found["Gemma3", "eager"][0] == found["Gemma3", "sdpa"][0] == 0
)
END
quiet new/bin/python run.py
