"""Tiny random models that see as HunyuanOCR does, made with transformers, in each layout that checkpoints have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from isobit.media.values import Picture
from isobit.models.archs import family

START, END, TOKEN = 301, 302, 303
PROCESSOR = {
    "image_processor_type": "HunYuanVLImageProcessor", "processor_class": "HunYuanVLProcessor", "min_pixels": 256,
    "max_pixels": 4096, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 1, "resample": 1,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.25],
}  # fmt: skip
LAYOUTS = ("flat", "nested", "renamed")


def make(seed: int = 0, vision: Mapping[str, Any] = MappingProxyType({}), **text: Any) -> Any:
    """A random float32 model of transformers: no weight, bias or norm is zero or one."""
    torch.manual_seed(seed)
    sizes = family("hunyuan_vl").tiny()
    sizes["text_config"] = sizes["text_config"] | text
    sizes["vision_config"] = sizes["vision_config"] | vision
    model = transformers.HunYuanVLForConditionalGeneration(transformers.HunYuanVLConfig(**sizes)).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith(("norm.weight", "rms.weight", "layer_norm1.weight", "layer_norm2.weight")):
            parameter.data.uniform_(0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def save(model: Any, folder: Path, layout: str = "nested") -> Path:
    """Saves a model: ``flat``: config.json and names as in 1.0; ``nested``: with sections, as transformers writes it;
    ``renamed``: with the names that tensors have in transformers' module.
    """
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if layout == "renamed":
        tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if layout == "flat":
        config = json.loads((folder / "config.json").read_text())
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        text["rope_theta"], text["org_vocab_size"] = rope.pop("rope_theta"), text["vocab_size"]
        rope["xdrope_section"], rope["type"] = rope.pop("mrope_section"), "xdrope"
        del rope["rope_type"]
        config["image_start_token_id"], config["image_end_token_id"] = (
            config.pop("im_start_id"),
            config.pop("im_end_id"),
        )
        config = text | config | {"rope_scaling": rope}
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def picture(height: int, width: int, seed: int = 0) -> Picture:
    """A picture of noise."""
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def prepared(pictures: list[Picture], **changes: Any) -> Any:
    """What transformers' processor makes of pictures."""
    from PIL import Image
    from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil

    keys = {key: value for key, value in (PROCESSOR | changes).items() if not key.endswith(("_type", "_class"))}
    return HunYuanVLImageProcessorPil(**keys)([Image.fromarray(one.pixels) for one in pictures], return_tensors="pt")


def words(*parts: int | None, seed: int = 0) -> list[int]:
    """Token ids: so many of text, and for None an image between its marks."""
    rng = np.random.default_rng(seed)
    found: list[int] = []
    for part in parts:
        found += [START, TOKEN, END] if part is None else rng.integers(5, 300, part).tolist()
    return found


@torch.no_grad()
def logits(model: Any, ids: tuple[int, ...], pictures: list[Picture], **changes: Any) -> torch.Tensor:
    """transformers' logits ``[T, vocab]`` of expanded ids."""
    given = torch.tensor([ids])
    media = prepared(pictures, **changes) if pictures else {}
    return model(input_ids=given, mm_token_type_ids=(given == TOKEN).int(), **media).logits[0]


BOS, EOS, SYSTEM, USER = (
    "<｜hy_begin▁of▁sentence｜>",
    "<｜hy_Assistant｜>",
    "<｜hy_place▁holder▁no▁3｜>",
    "<｜hy_User｜>",
)
MARKS = {START: 100, END: 101, TOKEN: 102, 304: 103}  # ids -> numbers in the names of these tokens
IMAGE = "".join(f"<｜hy_place▁holder▁no▁{MARKS[id]}｜>" for id in (START, TOKEN, END))
# The form of prompts that the model's documentation shows.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% if m.content %}{{ m.content }}" + SYSTEM
    + "{% endif %}{% elif m.role == 'user' %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}" + IMAGE + "{% elif part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}" + USER + "{% elif m.role == 'assistant' %}{{ m.content }}"
    + EOS + "{% endif %}{% endfor %}"
)  # fmt: skip


def tokenizer() -> Tokenizer:
    """A token for each byte, and special ones up to the end of the tiny models' vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    named = {256: BOS, 257: EOS, 258: SYSTEM, 259: USER}
    texts = [named.get(id) or f"<｜hy_place▁holder▁no▁{MARKS.get(id, id)}｜>" for id in range(256, 320)]
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in texts])
    return made


def save_with_text(model: Any, folder: Path, layout: str = "nested", **generation: Any) -> Path:
    """Saves a model with its tokenizer, chat template and settings of generation."""
    save(model, folder, layout)
    tokenizer().save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 257} | generation))
    return folder


@torch.no_grad()
def answer(model: Any, ids: tuple[int, ...], pictures: list[Picture], tokens: int, **options: Any) -> list[int]:
    """transformers' greedy answer to expanded ids."""
    given = torch.tensor([ids])
    media = prepared(pictures) | {"mm_token_type_ids": (given == TOKEN).int()} if pictures else {}
    made = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
        pad_token_id=0, **media, **options,
    )  # fmt: skip
    return made[0, len(ids) :].tolist()
