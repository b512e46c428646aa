#!/usr/bin/env bash
# compressed-tensors 0.20.0, transformers 5.23.0
# A checkpoint of two groups, MLPs in 4 bits and attention in 8 (both "pack-quantized"), is loaded with dequantize=True.
#
# Guess: every module is unpacked with the bits of its own group, as without that option.
# Seen:  all modules are unpacked with the bits of the group that stands first in config.json. With the 4-bit group first the
#        8-bit weights come out wrong without an error (relative error 1.0: 4 bits of each 8 are read);
#        with the 8-bit group first loading ends in a RuntimeError about sizes.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 accelerate
cat > run.py << 'END'
import json
import shutil

import torch
from tiny import IDS, INT4, INT8, end, model, save
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

mlp = (["re:.*(gate|up|down)_proj$"], INT4, None, "pack-quantized")
attention = (["re:.*(q|k|v|o)_proj$"], INT8, None, "pack-quantized")
save("made", {"group_0": mlp, "group_1": attention})
name = "model.layers.0.self_attn.q_proj"
plain = model().get_submodule(name).weight.float()


def outcome(first: int, **options: object) -> str:
    """What becomes of an 8-bit weight when the group with so many bits stands first."""
    folder = f"first-{first}"
    shutil.copytree("made", folder, dirs_exist_ok=True)
    config = json.load(open(f"{folder}/config.json"))
    groups = list(config["quantization_config"]["config_groups"].values())
    groups.sort(key=lambda group: group["weights"]["num_bits"] != first)
    config["quantization_config"]["config_groups"] = {f"group_{number}": group for number, group in enumerate(groups)}
    json.dump(config, open(f"{folder}/config.json", "w"))
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, **options)
        loaded(torch.tensor([IDS]))  # weights are unpacked at the first use, at the latest
    except RuntimeError as error:
        return f"RuntimeError: {str(error)[:60]}"
    wrong = float((loaded.get_submodule(name).weight.float() - plain).norm() / plain.norm())
    return "right" if wrong < 0.02 else f"wrong, relative error {wrong:.2f}"


option = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
seen = {(first, bool(given)): outcome(first, **given) for first in (4, 8) for given in ({}, option)}
for (first, given), what in seen.items():
    print(f"{first} bits first, {'dequantize=True' if given else 'as it is'}: an 8-bit weight is {what}")
end(
    seen[4, False] == seen[8, False] == "right"
    and seen[4, True].startswith("wrong")
    and seen[8, True].startswith("RuntimeError")
)
END
quiet new/bin/python run.py
