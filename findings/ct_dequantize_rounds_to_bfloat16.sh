#!/usr/bin/env bash
# transformers 5.23.0 with compressed-tensors 0.20.0
# FP8, 8-bit and 4-bit checkpoints of a bfloat16 model, written by compressed-tensors (scales are bfloat16 then), are loaded with
# dtype=torch.float32, once as they are and once with CompressedTensorsConfig(dequantize=True).
#
# Guess: both have the same weights, code times scale in float32: dequantize=True unpacks them at once and the other at the first forward.
# Seen:  as they are they do, to the bit. With dequantize=True every weight has been rounded to bfloat16, the dtype of its scale, and is
#        then kept in float32: errors of up to 1 in 256, without a word, and other logits.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 accelerate
cat > run.py << 'END'
import safetensors
import torch
import transformers as T
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from tiny import FP8, IDS, INT4, INT8, end, kl, save

FORMATS = {"fp8": (FP8, "naive-quantized"), "int8": (INT8, "int-quantized"), "int4": (INT4, "pack-quantized")}
LAYER = "model.layers.0.mlp.up_proj."


def exact(folder: str) -> torch.Tensor:
    """Code times scale in float32."""
    with safetensors.safe_open(f"{folder}/model.safetensors", "pt") as file:
        scale = file.get_tensor(LAYER + "weight_scale")
        assert scale.dtype == torch.bfloat16
        if LAYER + "weight" in file.keys():
            codes = file.get_tensor(LAYER + "weight")
        else:
            codes = unpack_from_int32(file.get_tensor(LAYER + "weight_packed"), 4, torch.Size((256, 256)))
    return (codes.float().unflatten(1, (scale.shape[1], -1)) * scale.float().unsqueeze(-1)).flatten(1)


found = {}
for name, (weights, format) in FORMATS.items():
    save(name, {"group_0": (["Linear"], weights, None, format)})
    wanted, answers = exact(name), []
    for option in ({}, {"quantization_config": T.CompressedTensorsConfig(dequantize=True)}):
        model = T.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **option)
        with torch.no_grad():
            answers.append(model(torch.tensor([IDS])).logits[0].log_softmax(-1))
        weight = model.get_parameter(LAYER + "weight").detach()
        assert weight.dtype == torch.float32
        off = ((weight - wanted).abs() / wanted.abs().clamp(min=1e-9)).max().item()
        found[name, bool(option)] = off, torch.equal(weight, wanted.bfloat16().float())
        given = "dequantize=True" if option else "as it is"
        print(f"{name}, {given}: off by at most {off:.5f} of a weight; rounded to bfloat16: {found[name, bool(option)][1]}")
    found[name] = kl(*answers)
    print(f"  a KL of {found[name]:.2g} between the two")
end(
    all(
        found[name, False] == (0.0, False) and 0.002 < found[name, True][0] < 1 / 250 and found[name, True][1] and found[name] > 0
        for name in FORMATS
    )
)
END
quiet new/bin/python run.py
