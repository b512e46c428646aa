#!/usr/bin/env bash
# transformers 5.23.0
# HunYuanVL (HunyuanOCR) with four sections of rotary dimensions, one for each axis of positions: place, width, height, number of the image.
# Columns i and i + d/2 of a head are a pair, which is turned by one angle.
#
# Guess: a section is of pairs, as in Qwen2-VL: both columns of a pair take their position from one axis, and keys keep their norms.
# Seen:  sections are cut from all the d columns, so the two of a pair take different axes: place with height, width with image. For text,
#        whose axes agree, that is a rotation. For tokens of an image it is none: single pairs become anything between 0 and 1.41 times
#        as long, random keys up to a tenth longer or shorter, and how two tokens of an image see each other depends on how much text
#        stands before it.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
from tiny import end
from transformers import HunYuanVLTextConfig, Qwen2VLTextConfig
from transformers.models.hunyuan_vl import modeling_hunyuan_vl as hunyuan
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

SIZE = {"hidden_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 4096}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 1000.0, "mrope_section": [16, 16, 16, 16]}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 24, 24]}
ROPES = {
    "HunYuanVL": (hunyuan, hunyuan.HunYuanVLRotaryEmbedding(HunYuanVLTextConfig(**SIZE, head_dim=128, rope_parameters=DYNAMIC)), 4),
    "Qwen2-VL": (qwen, qwen.Qwen2VLRotaryEmbedding(Qwen2VLTextConfig(**SIZE, rope_parameters=PLAIN)), 3),
}
torch.manual_seed(0)
QUERY, KEY = torch.randn(2, 1, 1, 1, 128)
KEYS = torch.randn(1, 1, 2000, 128)


def turned(name: str, states: torch.Tensor, position: list[int]) -> torch.Tensor:
    """Queries or keys [1, 1, n, d] at a position, which has a number for each axis."""
    module, rope, _ = ROPES[name]
    cos, sin = rope(states, torch.tensor(position).view(-1, 1, 1))
    return module.apply_rotary_pos_emb(states, states, cos, sin)[0]


def axes(name: str) -> list[set[int]]:
    """Of each column: the axes that move its cosine or sine."""
    _, rope, count = ROPES[name]
    still = torch.stack(rope(KEY, torch.zeros(count, 1, 1, dtype=torch.long)))
    moved = [torch.stack(rope(KEY, torch.eye(count, dtype=torch.long)[axis].view(-1, 1, 1))) for axis in range(count)]
    differ = torch.stack([(one != still).any(0).flatten() for one in moved])
    return [set(differ[:, column].nonzero().flatten().tolist()) for column in range(128)]


def lengths(name: str, position: list[int]) -> tuple[float, float, float, float]:
    """Of many keys: how much their norms are multiplied, least and most; and the same of their pairs."""
    after = turned(name, KEYS, position)
    whole = after.norm(dim=-1) / KEYS.norm(dim=-1)
    pairs = after.unflatten(-1, (2, 64)).norm(dim=-2) / KEYS.unflatten(-1, (2, 64)).norm(dim=-2)
    return float(whole.min()), float(whole.max()), float(pairs.min()), float(pairs.max())


found = {}
for name, text, image in (
    ("HunYuanVL", [40] * 4, lambda before, x, y: [before + 10 * y + x, x, y, 0]),
    ("Qwen2-VL", [40] * 3, lambda before, x, y: [before, before + y, before + x]),
):
    of = axes(name)
    alike = sum(of[i] == of[i + 64] for i in range(64))
    norms = [lengths(name, position) for position in (text, image(40, 7, 3))]
    scores = [float((turned(name, QUERY, image(n, 7, 3)) * turned(name, KEY, image(n, 2, 1))).sum()) for n in (0, 40)]
    found[name] = alike, norms, scores
    print(f"{name}: of 64 pairs {alike} have one axis; the axes of columns 0 and 64 are {of[0]} and {of[64]}")
    for where, (low, high, least, most) in zip(("as text", "in an image"), norms, strict=True):
        print(f"  {where} norms of keys are times {low:.3f} to {high:.3f}, of pairs times {least:.3f} to {most:.3f}")
    print(f"  a query and a key of an image, after 0 and after 40 tokens of text: {scores[0]:.4f}, {scores[1]:.4f}")
alike, norms, scores = found["HunYuanVL"]
other = found["Qwen2-VL"]
still = [*norms[0], *other[1][0], *other[1][1]]
low, high, least, most = norms[1]
end(
    alike == 0
    and other[0] == 64
    and all(abs(times - 1) < 1e-3 for times in still)
    and (low < 0.95 and high > 1.05 and least < 0.2 and most > 1.4)
    and abs(scores[0] - scores[1]) > 0.5
    and abs(other[2][0] - other[2][1]) < 1e-2
)
END
quiet new/bin/python run.py
