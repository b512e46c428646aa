#!/usr/bin/env bash
# transformers 5.23.0 (quant_method "fp8", FineGrainedFP8), without a GPU, where it turns the weights into plain ones
# A DeepSeek-style fp8 checkpoint, blocks of 128 x 128, with matrices of 200 and 576 rows: ceil(200 / 128) = 2 and
# ceil(576 / 128) = 5 rows of scales. (576 is kv_a_proj_with_mqa of DeepSeek-V3.)
#
# Guess: block i has rows 128 i to 128 i + 127, and the last one is smaller: as in DeepSeek's own code.
# Seen:  rows are divided evenly among the scales. With 200 rows the scale changes at row 100 instead of 128: rows 100 to 127
#        are wrong, without an error. 576 rows, which 5 does not divide, end in a RuntimeError.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 accelerate
cat > run.py << 'END'
import json
from pathlib import Path

import torch
import transformers as T
from safetensors.torch import save_file
from tiny import end


def seen(rows: int) -> str:
    """Where the scale of an up_proj with so many rows changes, after loading; every code is 1, so weights are scales."""
    config = T.LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=rows, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    tensors = {}
    for name, weight in T.LlamaForCausalLM(config).to(torch.bfloat16).state_dict().items():
        tensors[name] = weight.clone()
        if name.endswith("_proj.weight"):
            n, k = weight.shape
            blocks = -(-n // 128), -(-k // 128)
            tensors[name] = torch.ones(n, k).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.arange(1.0, blocks[0] * blocks[1] + 1).reshape(blocks)
    folder = Path(f"rows-{rows}")
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
    made = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "quantization_config": method}
    (folder / "config.json").write_text(json.dumps(made))
    try:
        model = T.AutoModelForCausalLM.from_pretrained(str(folder))
    except RuntimeError as error:
        return f"RuntimeError: {str(error)[:60]}"
    column = model.model.layers[0].mlp.up_proj.weight[:, 0].tolist()
    return str([row for row in range(1, rows) if column[row] != column[row - 1]])


found = {rows: seen(rows) for rows in (256, 200, 576)}
for rows, what in found.items():
    print(f"{rows} rows: the scale changes at {what}; in blocks of 128 at {list(range(128, rows, 128))}")
end(found[256] == "[128]" and found[200] == "[100]" and found[576].startswith("RuntimeError"))
END
quiet new/bin/python run.py
