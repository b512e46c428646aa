#!/usr/bin/env bash
# transformers 5.23.0 with compressed-tensors 0.20.0
# Checkpoints in presets of compressed-tensors, written by it, are loaded with dtype=torch.float32 and given some tokens.
#
# Guess: all compute in float32, as FP8 and 4-bit integers do: the model says that this is its dtype.
# Seen:  weights of MXFP4, NVFP4 and MXFP8, with activations rounded or not, are unpacked to bfloat16 whatever was asked for, and the
#        first forward raises "RuntimeError: expected m1 and m2 to have the same dtype, but got: float !=
#        c10::BFloat16". With dtype=torch.bfloat16 they run.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 accelerate
cat > run.py << 'END'
import torch
import transformers as T
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from tiny import IDS, end, model

FINE, FOUND = ["W4A16", "FP8_DYNAMIC"], ["MXFP4A16", "MXFP4", "NVFP4A16", "NVFP4", "MXFP8A16", "MXFP8"]


def save(preset: str) -> None:
    """Scales by compressed-tensors' own rule, from the smallest and largest weights."""
    made = model()
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
        if hasattr(module, "input_global_scale"):
            module.input_global_scale.data.copy_(generate_gparam(torch.tensor(-4.0), torch.tensor(4.0)))
        parts = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
        scale, _ = calculate_qparams(parts.amin(-1), parts.amax(-1), args, global_scale=over)
        module.weight_scale.data.copy_(scale)
    compressor = ModelCompressor.from_pretrained_model(made)
    compressor.compress_model(made)
    made.save_pretrained(preset)
    compressor.update_config(preset)


def seen(preset: str, dtype: torch.dtype) -> str:
    loaded = T.AutoModelForCausalLM.from_pretrained(preset, dtype=dtype)
    try:
        with torch.no_grad():
            what = "logits are finite" if loaded(torch.tensor([IDS])).logits.isfinite().all() else "logits are not finite"
    except RuntimeError as error:
        what = f"RuntimeError: {error}"
    weight = loaded.model.layers[0].mlp.up_proj.weight.dtype
    return f"dtype of the model {loaded.dtype}, of a weight {weight}; {what}".replace("torch.", "")


found = {}
for preset in FINE + FOUND:
    save(preset)
    for dtype in (torch.bfloat16, torch.float32):
        found[preset, dtype] = seen(preset, dtype)
        print(f"{preset}: {found[preset, dtype]}")
refusal = "of a weight bfloat16; RuntimeError: expected m1 and m2 to have the same dtype"
end(
    all("logits are finite" in found[preset, torch.bfloat16] for preset in FINE + FOUND)
    and all("of a weight float32; logits are finite" in found[preset, torch.float32] for preset in FINE)
    and all(refusal in found[preset, torch.float32] for preset in FOUND)
)
END
quiet new/bin/python run.py
