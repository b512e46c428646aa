#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU
# A float32 matrix [128, K] goes through functional.quantize_4bit (nf4) and dequantize_4bit with one of the block sizes it offers.
#
# Guess: dequantize_4bit inverts quantize_4bit for any block size: blocks are cut from the flat tensor, whatever its shape.
# Seen:  not where a row ends within a block: 96 columns in blocks of 64 (the default) or 576 in blocks of 128 or 256 come back with errors
#        of 0.08 to 0.10, where the same codes and scales, read in flat blocks, are within 0.026. quantize_4bit lets a block go on in
#        the next row; dequantize_4bit takes scales as if it did not. No error, no warning. Right are one row, columns that are
#        multiples of the block, or no multiple of 16, and blocks of 2048 and more. Seen with AVX-512.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0 bitsandbytes==0.50.2
cat > run.py << 'END'
import bitsandbytes.functional as F
import torch
from tiny import end


def errors(columns: int, block: int) -> tuple[float, float]:
    """The largest error of dequantize_4bit, and of the same codes and scales in flat blocks."""
    weight = torch.randn(128, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    packed, state = F.quantize_4bit(weight, blocksize=block, quant_type="nf4")
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), dim=1).flatten().long()
    flat = state.code[codes] * state.absmax.repeat_interleave(block)[: weight.numel()]
    library = F.dequantize_4bit(packed, state)
    return tuple(float((found - weight).abs().max()) for found in (library, flat.view_as(weight)))


RIGHT, WRONG = [(576, 64), (640, 128), (200, 64), (576, 2048)], [(96, 64), (576, 128), (576, 256)]
found = {case: errors(*case) for case in RIGHT + WRONG}
for (columns, block), (library, flat) in found.items():
    print(f"{columns} columns in blocks of {block}: dequantize_4bit is off by {library:.3f}, flat blocks by {flat:.3f}")
end(
    all(flat < 0.035 for _, flat in found.values())
    and all(found[case][0] == found[case][1] for case in RIGHT)
    and all(found[case][0] > 0.07 for case in WRONG)
)
END
quiet new/bin/python run.py
