#!/usr/bin/env bash
# transformers 5.23.0
# Phi-3 configs with a longer context, in the two spellings that they had: the first called its rope "su", later it is "longrope". The
# length that it was trained with, original_max_position_embeddings, stands beside rope_scaling and not in it, as Microsoft writes it.
#
# Guess: both load and are the same: Phi3Config has a few lines that rename "su".
# Seen:  "longrope" loads. "su" is a KeyError, "Missing required keys in `rope_parameters` for 'rope_type'='longrope':
#        {'original_max_position_embeddings'}": it is renamed after that length has been fetched for "longrope" alone. With a copy of the
#        length in rope_scaling "su" loads, and is the same.
. "$(dirname "$0")"/environment.sh
environment new transformers==5.23.0
cat > run.py << 'END'
import json
from pathlib import Path

from transformers import AutoConfig

found = {}
for kind, inside in (("longrope", {}), ("su", {}), ("su", {"original_max_position_embeddings": 4096})):
    config = {
        "model_type": "phi3", "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 256,
        "rope_theta": 10000.0, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": kind, "short_factor": [1.05] * 16, "long_factor": [1.5] * 16} | inside,
    }  # fmt: skip
    Path("model").mkdir(exist_ok=True)
    Path("model/config.json").write_text(json.dumps(config))
    try:
        rope = dict(AutoConfig.from_pretrained("model").rope_parameters)
        rope.pop("type", None)
        what = f"loads: {rope['rope_type']}, {rope['original_max_position_embeddings']}"
    except KeyError as error:
        rope, what = {}, f"KeyError: {error.args[0]}"
    found[kind, bool(inside)] = rope, what
    print(kind + (" with the length inside" if inside else "") + ":", what)
as_found = (
    bool(found["longrope", False][0])
    and found["su", True][0] == found["longrope", False][0]
    and "original_max_position_embeddings" in found["su", False][1]
    and not found["su", False][0]
)
print("as found" if as_found else "CHANGED")
raise SystemExit(not as_found)
END
quiet new/bin/python run.py
