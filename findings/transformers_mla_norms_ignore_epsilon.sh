#!/usr/bin/env bash
# transformers 5.23.0, models with latent attention: DeepSeek V2 and V3, GLM-4.7-Flash (glm4_moe_lite)
# A small random model with rms_norm_eps = 1e-3 in its config.
#
# Guess: that is the epsilon of all its RMSNorms, as the name says, so of q_a_layernorm and kv_a_layernorm too.
# Seen:  these two have 1e-6 in all three models, the other norms 1e-3. Logits move by 2 to 6 % of the
#        largest one when the two are given 1e-3 as well. (With 1e-6, as DeepSeek's configs have it, it is the same.)
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
import transformers as T
from tiny import IDS, end

as_found = True
for name in ("DeepseekV2", "DeepseekV3", "Glm4MoeLite"):
    torch.manual_seed(0)
    config = getattr(T, f"{name}Config")(
        vocab_size=256, hidden_size=128, intermediate_size=256, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1,
        max_position_embeddings=256, rms_norm_eps=1e-3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = getattr(T, f"{name}ForCausalLM")(config).eval()
    norms = {name: module for name, module in model.named_modules() if hasattr(module, "variance_epsilon")}
    inner = [module for name, module in norms.items() if name.endswith(("q_a_layernorm", "kv_a_layernorm"))]
    outer = [module for module in norms.values() if module not in inner]
    epsilons = [sorted({module.variance_epsilon for module in some}) for some in (inner, outer)]
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits
        for module in inner:
            module.variance_epsilon = 1e-3
        moved = float((model(torch.tensor([IDS])).logits - logits).abs().max() / logits.abs().max())
    print(f"{name}: q_a and kv_a {epsilons[0]}, other norms {epsilons[1]}; logits with 1e-3 in all: moved by {moved:.1%}")
    as_found = as_found and len(inner) == 4 and epsilons == [[1e-6], [1e-3]] and moved > 0.01
end(as_found)
END
quiet new/bin/python run.py
