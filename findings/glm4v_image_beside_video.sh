#!/usr/bin/env bash
# transformers 5.23.0
# A small random GLM-4.1V gets prompts in the layout of its processor: an image is image tokens, and a frame of a video is image tokens too.
#
# Guess: an image and a video in one prompt work, as each does alone: images fill the tokens of images, frames those between the marks of
#        a video.
# Seen:  ValueError: Image features and image tokens do not match. Both are looked for as the id of image tokens, anywhere in the prompt,
#        so each finds the tokens of the other too. Two images, two videos, and a prompt of each in turn run. GLM-4.5V and
#        GLM-4.6V are alike.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
import transformers as T
from tiny import end

IMAGE, VIDEO, START, END, FIRST, LAST = range(300, 306)
TEXT = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]},
}  # fmt: skip
EXPERTS = {
    "head_dim": 32, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 0,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
VISION = {
    "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "image_size": 28, "patch_size": 14,
    "out_hidden_size": 64,
}  # fmt: skip
TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END,
    "video_start_token_id": FIRST, "video_end_token_id": LAST,
}  # fmt: skip
GRID, WIDTH = [4, 4], 3 * 2 * 14 * 14  # a picture or frame of 4 x 4 patches: 4 tokens
PICTURE = [START, *[IMAGE] * 4, END]


def prompt(kinds: str) -> dict[str, torch.Tensor]:
    """What the processor makes of a text with images (i) and videos of two frames (v)."""
    ids, types = [1, 2], [0, 0]
    for kind in kinds:
        part = PICTURE if kind == "i" else [FIRST, *PICTURE, 7, *PICTURE, 8, LAST]
        ids += [*part, 3]
        types += [{"i": 1, "v": 2}[kind] if token == IMAGE else 0 for token in part] + [0]
    made = {"input_ids": torch.tensor([ids]), "mm_token_type_ids": torch.tensor([types])}
    for kind, frames, pixels, grid in (
        ("i", 1, "pixel_values", "image_grid_thw"),
        ("v", 2, "pixel_values_videos", "video_grid_thw"),
    ):
        if count := kinds.count(kind):
            made |= {grid: torch.tensor([[frames, *GRID]] * count), pixels: torch.randn(count * frames * 16, WIDTH)}
    return made


found = {}
for name, more in (("Glm4v", {}), ("Glm4vMoe", EXPERTS), ("Glm46V", {"model_type": "glm4v_text"})):
    torch.manual_seed(0)
    model = getattr(T, f"{name}ForConditionalGeneration")
    model = model(model.config_class(text_config=TEXT | more, vision_config=VISION, **TOKENS)).eval()
    for kinds in ("i", "v", "ii", "vv", "iv", "vi"):
        try:
            with torch.no_grad():
                what = "runs" if model(**prompt(kinds)).logits.isfinite().all() else "is not finite"
        except ValueError as error:
            what = f"ValueError: {error}"
        found[name, kinds] = what
        print(f"{name}, {' and '.join({'i': 'an image', 'v': 'a video'}[kind] for kind in kinds)}: {what}")
end(
    all(
        ("Image features and image tokens do not match" in what) if len(set(kinds)) == 2 else what == "runs"
        for (_, kinds), what in found.items()
    )
)
END
quiet new/bin/python run.py
