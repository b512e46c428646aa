#!/usr/bin/env bash
# transformers 5.23.0
# Exaone4Config with windows in the ways that its documentation names, sliding_window=None, sliding_window_pattern=None, a number and a
# word ("LLLG"), with layer_types beside them, as LG's configs have them, and without.
#
# Guess: without a window all layers have full attention; "LLLG" is the same as 4. That is what the documentation says.
# Seen:  without layer_types only the number works. sliding_window=None is a ZeroDivisionError, a pattern of None or a word a
#        TypeError: the pattern is taken for a divisor, and for 0 without a window. With layer_types, which LG's own configs
#        have, all of them load.
. "$(dirname "$0")"/environment.sh
environment new transformers==5.23.0
cat > run.py << 'END'
import json
from pathlib import Path

from transformers import AutoConfig

CASES = {
    "sliding_window=None": {"sliding_window": None},
    "sliding_window_pattern=None": {"sliding_window": 16, "sliding_window_pattern": None},
    'sliding_window_pattern="LLLG"': {"sliding_window": 16, "sliding_window_pattern": "LLLG"},
    "sliding_window_pattern=4": {"sliding_window": 16, "sliding_window_pattern": 4},
}
LAYERS = (["sliding_attention"] * 3 + ["full_attention"]) * 2
SEEN = ["ZeroDivisionError", "TypeError", "TypeError", "LLLGLLLG"]


def loaded(keys: dict) -> str:
    """The layers of the configuration in a folder, or the name of the error."""
    Path("model").mkdir(exist_ok=True)
    Path("model/config.json").write_text(json.dumps({"model_type": "exaone4", "num_hidden_layers": 8} | keys))
    try:
        return "".join("L" if kind == "sliding_attention" else "G" for kind in AutoConfig.from_pretrained("model").layer_types)
    except (ZeroDivisionError, TypeError) as error:
        return type(error).__name__


same = True
for (name, keys), seen in zip(CASES.items(), SEEN):
    layers = ["full_attention"] * 8 if "None" in name else LAYERS
    found, beside = loaded(keys), loaded(keys | {"layer_types": layers})
    print(f"{name}: {found}; with layer_types: {beside}")
    same = same and found == seen and beside == ("GGGGGGGG" if "None" in name else "LLLGLLLG")
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
