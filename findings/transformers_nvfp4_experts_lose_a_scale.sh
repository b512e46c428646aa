#!/usr/bin/env bash
# transformers 5.23.0 with compressed-tensors 0.20.0
# A small Qwen3-MoE in presets of compressed-tensors (weights alone), compressed by it with a linear for each matrix of an expert, as
# llm-compressor stores them: experts.0.gate_proj.weight_packed and so on. transformers loads them into its stacked experts.
#
# Guess: what is loaded is the model to within a rounding of 4 bits, in each preset: experts of W4A16 and MXFP4 are, and linears of NVFP4.
# Seen:  experts of NVFP4 are thousands of times too large. Their second scale (weight_global_scale, which divides the scales of groups)
#        is left out; attention beside them, which has the same two scales, is right. No error, no warning, nothing missing or
#        unexpected in the loading info.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 accelerate
cat > run.py << 'END'
import torch
import transformers as T
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from tiny import IDS, end, kl

EXPERTS, SIZE = 4, 128
NAMES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class Expert(torch.nn.Module):
    """Linears with the weights of one of the stacked experts."""

    def __init__(self, stacked, number):
        super().__init__()
        for name, parts in NAMES.items():
            for part, weight in zip(parts, getattr(stacked, name)[number].data.chunk(len(parts)), strict=True):
                linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
                linear.weight.data.copy_(weight)
                setattr(self, part, linear)


def model():
    torch.manual_seed(0)
    config = T.Qwen3MoeConfig(
        vocab_size=256, hidden_size=SIZE, moe_intermediate_size=SIZE, num_hidden_layers=1, num_attention_heads=4, head_dim=32,
        num_key_value_heads=4, max_position_embeddings=256, num_experts=EXPERTS, num_experts_per_tok=2, initializer_range=0.1,
    )  # fmt: skip
    return T.Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()


def save(preset):
    """Scales by compressed-tensors' own rule, from the smallest and largest weights."""
    made = model()
    block = made.model.layers[0].mlp
    block.experts = torch.nn.ModuleList(Expert(block.experts, number) for number in range(EXPERTS))
    scheme = preset_name_to_scheme(preset, ["Linear"])
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], quantization_status="compressed")
    apply_quantization_config(made, config)
    for module in made.modules():
        if not hasattr(module, "weight_scale"):
            continue
        args, weight, over = module.quantization_scheme.weights, module.weight.data.float(), None
        if hasattr(module, "weight_global_scale"):
            over = generate_gparam(weight.amin(), weight.amax())
            module.weight_global_scale.data.copy_(over)
        parts = weight.unflatten(1, (-1, args.group_size))
        scale, _ = calculate_qparams(parts.amin(-1), parts.amax(-1), args, global_scale=over)
        module.weight_scale.data.copy_(scale)
    compressor = ModelCompressor.from_pretrained_model(made)
    compressor.compress_model(made)
    made.save_pretrained(preset)
    compressor.update_config(preset)


def answers(of):
    with torch.no_grad():
        return of(torch.tensor([IDS])).logits[0].float().log_softmax(-1)


plain, found = model(), {}
expected = answers(plain)
for preset in ("W4A16", "MXFP4A16", "NVFP4A16"):
    save(preset)
    loaded, info = T.AutoModelForCausalLM.from_pretrained(preset, dtype=torch.bfloat16, output_loading_info=True)
    apart = kl(expected, answers(loaded.eval()))
    layers = (plain.model.layers[0], loaded.model.layers[0])
    pairs = {
        "attention": [layer.self_attn.o_proj.weight for layer in layers],
        **{name: [getattr(layer.mlp.experts, name) for layer in layers] for name in NAMES},
    }
    times = {name: float(b.float().norm() / a.float().norm()) for name, (a, b) in pairs.items()}
    silent = not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found[preset] = times, silent
    sizes = ", ".join(f"{name} {size:.4g}" for name, size in times.items())
    print(f"{preset}: times as large as the weights: {sizes}; KL {apart:.2g}; {'nothing' if silent else info} missing or left over")
end(
    all(silent for _, silent in found.values())
    and all(0.9 < times["attention"] < 1.1 for times, _ in found.values())
    and all(0.9 < found[preset][0][name] < 1.1 for preset in ("W4A16", "MXFP4A16") for name in NAMES)
    and all(found["NVFP4A16"][0][name] > 1000 for name in NAMES)
)
END
quiet new/bin/python run.py
