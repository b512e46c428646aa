#!/usr/bin/env bash
# llm-compressor 0.14.0.1 (with its transformers 5.17.0 and compressed-tensors 0.19.0) beside transformers 5.23.0 with
# compressed-tensors 0.20.0
# Small mixtures of experts, 4-bit (W4A16) by llm-compressor: it makes linears of the experts and writes a tensor for each one,
# experts.0.gate_proj.weight_packed and so on. transformers loads them twice.
#
# Guess: the tensors are merged into the model's stacked experts for gpt-oss and GraniteMoE, as for Mixtral and Qwen3-MoE.
# Seen:  only Qwen3-MoE's are. gpt-oss, GraniteMoE, and Mixtral too, whose experts are written as gate_proj, up_proj and down_proj and not
#        as w1, w3 and w2, load without an error, with experts of random numbers: others, and other answers, each time. The load
#        report, a warning, has the tensors as UNEXPECTED and the experts as MISSING, "newly initialized". dequantize=True is alike.
. "$(dirname "$0")"/environment.sh
environment made torch==2.13.0 llmcompressor==0.14.0.1 transformers==5.17.0 compressed-tensors==0.19.0
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 accelerate
cat > make.py << 'END'
import torch
import transformers as T
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linearize import linearize_moe
from llmcompressor.modifiers.quantization import QuantizationModifier

MODELS = {
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 128},
    "Mixtral": {"num_local_experts": 4},
    "GptOss": {"num_local_experts": 4, "head_dim": 32},
    "GraniteMoe": {"num_local_experts": 4},
}
for name, more in MODELS.items():
    torch.manual_seed(0)
    config = getattr(T, f"{name}Config")(
        vocab_size=256, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, num_experts_per_tok=2, initializer_range=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    getattr(T, f"{name}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(f"{name}-plain")
    model = linearize_moe(T.AutoModelForCausalLM.from_pretrained(f"{name}-plain", dtype=torch.bfloat16))
    ignore = ["lm_head", "re:.*router.*", "re:.*gate$"]
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="W4A16", ignore=ignore))
    model.save_pretrained(name, save_compressed=True)
END
cat > load.py << 'END'
import safetensors
import torch
import transformers as T
from tiny import IDS, end, kl

found = {}
for name in ("Qwen3Moe", "Mixtral", "GptOss", "GraniteMoe"):
    with safetensors.safe_open(f"{name}/model.safetensors", "pt") as file:
        stored = sorted(key for key in file.keys() if ".experts." in key)
    print(f"{name}: stored {stored[0]} and {len(stored) - 1} like it")
    for option in ({}, {"quantization_config": T.CompressedTensorsConfig(dequantize=True)}):
        answers = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            model, info = T.AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **option)
            with torch.no_grad():
                answers.append(model(torch.tensor([IDS])).logits[0].float().log_softmax(-1))
        missing = sorted(key.split("layers.0.")[1] for key in info["missing_keys"])
        found[name, bool(option)] = apart = kl(*answers), missing
        given = "with dequantize=True" if option else "as it is"
        print(f"  {given}: a KL of {apart[0]:.2g} between two loads; missing: {', '.join(missing) or 'nothing'}")
end(
    all(
        (apart == 0 and not missing) if name == "Qwen3Moe" else (apart > 0.01 and len(missing) >= 2)
        for (name, _), (apart, missing) in found.items()
    )
)
END
quiet made/bin/python make.py > /dev/null
quiet new/bin/python load.py
