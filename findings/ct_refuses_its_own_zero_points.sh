#!/usr/bin/env bash
# compressed-tensors 0.20.0, transformers 5.23.0
# A 4-bit checkpoint with zero points (W4A16_ASYM), written by compressed-tensors itself, is loaded by transformers.
#
# Guess: it loads as the symmetric one does; the preset is one of compressed-tensors' own, and it packs the zero points itself.
# Seen:  the symmetric one loads. With zero points: "RuntimeError: You set `ignore_mismatched_sizes` to `False`, thus raising
#        an error". The file has packed int32 zero points [32, 2] for 256 rows in 2 groups; the module expects them unpacked.
#        compressed-tensors 0.17.0 with transformers 5.19.0 loads the same file.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 accelerate
cat > make.py << 'END'
from tiny import INT4, save

save("symmetric", {"group_0": (["Linear"], INT4, None, "pack-quantized")})
save("asymmetric", {"group_0": (["Linear"], INT4 | {"symmetric": False}, None, "pack-quantized")})
END
cat > load.py << 'END'
import safetensors
from tiny import by_transformers, end

file = safetensors.safe_open("asymmetric/model.safetensors", "pt")
print("zero points in the file:", file.get_tensor("model.layers.0.mlp.up_proj.weight_zero_point").shape)
print("symmetric: loads,", tuple(by_transformers("symmetric").shape))
try:
    by_transformers("asymmetric")
    end(False)
except RuntimeError as error:
    print("asymmetric:", error)
    end("ignore_mismatched_sizes" in str(error))
END
quiet new/bin/python make.py
quiet new/bin/python load.py
