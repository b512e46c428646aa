"""Tiny random GLMs that see, made with transformers, with a tokenizer, templates and settings of processors."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.video_utils import VideoMetadata

from isobit.models.archs import WITHIN, family

PLAIN, NEWER, EXPERTS = (f"{name}ForConditionalGeneration" for name in ("Glm4v", "Glm46V", "Glm4vMoe"))
SPECIAL = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
)  # fmt: skip
# As GLM-4.1V's: a part is what it says, or what it has.
FIRST_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages %}
{%- if message.role == 'system' %}<|system|>
{{ message.content }}
{%- elif message.role == 'user' %}<|user|>
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'video' or 'video' in part %}<|begin_of_video|><|video|><|end_of_video|>
{%- elif part.type == 'image' or 'image' in part %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}
{%- elif message.role == 'assistant' %}<|assistant|>
{{ message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""
# As GLM-4.5V's and 4.6V's: with thoughts, which /nothink in front of the answer turns off, and the text in a macro.
SECOND_TEMPLATE = """\
[gMASK]<sop>
{%- macro visible(content) -%}
{%- if content is string %}{{- content }}
{%- elif content is iterable and content is not mapping %}
{%- for part in content %}
{%- if part is mapping and part.type == 'text' %}{{- part.text }}
{%- elif part is mapping and (part.type == 'image' or 'image' in part) %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part is mapping and (part.type == 'video' or 'video' in part) %}<|begin_of_video|><|video|><|end_of_video|>
{%- elif part is string %}{{- part }}{%- endif %}
{%- endfor %}
{%- else %}{{- content }}{%- endif %}
{%- endmacro -%}
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ visible(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible(m.content).endswith('/nothink'))
else '' -}}
{%- elif m.role == 'assistant' %}<|assistant|>
{{ '<think></think>' }}
{%- if visible(m.content).strip() %}
{{ '\\n' + visible(m.content).strip() }}{% endif %}
{%- elif m.role == 'system' %}<|system|>
{{ visible(m.content) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{% endif %}"""


def tokenizer() -> Tokenizer:
    """A token for each byte, and GLM's special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    return made


def media_ids() -> dict[str, int]:
    """Keys of ``config.json``."""
    made, names = tokenizer(), {"start": "begin", "end": "end"}
    found = {f"{kind}_token_id": made.token_to_id(f"<|{kind}|>") for kind in ("image", "video")}
    for kind in ("image", "video"):
        found |= {f"{kind}_{end}_token_id": made.token_to_id(f"<|{name}_of_{kind}|>") for end, name in names.items()}
    return found


def make(
    architecture: str,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    spread: float = 0.05,
) -> Any:
    """A random float32 model of transformers; no weight is zero, and what a token sees changes its logits.

    The wider the weights of the decoder are spread, the less its greedy answers repeat themselves.
    """
    keys = family(WITHIN[architecture]).tiny() | media_ids()
    keys["text_config"] = keys["text_config"] | (text or {})
    keys["vision_config"] = keys["vision_config"] | (vision or {})
    torch.manual_seed(seed)
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**keys)).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.2 if "visual" in name else spread)
        else:
            parameter.data.uniform_(0.5, 1.5)
    for name, number in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            number.data.uniform_(-0.2, 0.2)
    return model


def settings(vision: Any, newer: bool, **changes: Any) -> dict[str, dict[str, Any]]:
    """Files with the settings of both processors."""
    names = "Glm46V" if newer else "Glm4v"
    common = {
        "size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 48 * 48},
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "processor_class": f"{names}Processor",
        "do_rescale": True,
    } | changes
    video = common | {"video_processor_type": f"{names}VideoProcessor"}
    video["size"] = {"shortest_edge": 2 * 16 * 16, "longest_edge": 8 * 32 * 32}
    return {
        "preprocessor_config.json": common | {"image_processor_type": f"{names}ImageProcessor"},
        "video_preprocessor_config.json": video,
    }


def save(model: Any, folder: Path, *, newer: bool = False, template: str = FIRST_TEMPLATE, **changes: Any) -> Path:
    """Saves a model with all that is beside it."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    for name, value in settings(model.config.vision_config, newer, **changes).items():
        (folder / name).write_text(json.dumps(value))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Colours that go over into each other, with noise: uint8 ``[*shape, 3]``."""
    rng = np.random.default_rng([seed, *shape])
    ramp = np.linspace(0, 200, int(np.prod(shape))).reshape(*shape, 1) + 20 * np.arange(3)
    return np.clip(ramp + rng.normal(0, 30, (*shape, 3)), 0, 255).astype(np.uint8)


def processor(newer: bool, merge: int) -> Any:
    """transformers' processor as far as it needs no torchvision: what it writes into prompts."""
    made = object.__new__(Glm46VProcessor if newer else Glm4vProcessor)
    ids = tokenizer()
    made.image_token, made.video_token = "<|image|>", "<|video|>"
    made.image_token_id, made.video_token_id = (ids.token_to_id(name) for name in ("<|image|>", "<|video|>"))
    made.video_start_id, made.video_end_id = (
        ids.token_to_id(name) for name in ("<|begin_of_video|>", "<|end_of_video|>")
    )  # fmt: skip
    made.image_processor = made.video_processor = type("Sizes", (), {"merge_size": merge})
    return made


def picture_processor(folder: Path) -> Any:
    """transformers' processor of pictures, from its file."""
    given = json.loads((folder / "preprocessor_config.json").read_text())
    return Glm4vImageProcessorPil.from_dict(given)


class VideoFunctions:
    """transformers' processors of videos as far as they need no torchvision: their functions, cut out of their files.

    Resizing is what torchvision does with bytes on a CPU, which is PyTorch's own.
    """

    def __init__(self, newer: bool) -> None:
        name = "glm46v" if newer else "glm4v"
        source = Path(transformers.__file__).parent / "models" / name / f"video_processing_{name}.py"
        wanted = ("smart_resize", "sample_frames", "patchify")
        found = [
            node for node in ast.walk(ast.parse(source.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name in wanted
        ]  # fmt: skip
        assert sorted(node.name for node in found) == sorted(wanted)
        names: dict[str, Any] = {"math": math, "np": np, "torch": torch, "VideoMetadata": VideoMetadata}
        exec(compile(ast.Module(found, []), str(source), "exec"), names)
        self._of = names

    def sample_frames(self, metadata: VideoMetadata, given: dict[str, Any]) -> np.ndarray:
        own = {"fps": 2, "max_duration": 300, "temporal_patch_size": 2} | given
        return self._of["sample_frames"](SimpleNamespace(**own), metadata)

    def resized(self, count: int, height: int, width: int, given: dict[str, Any]) -> tuple[int, int]:
        return self._of["smart_resize"](
            count, height, width, given["temporal_patch_size"], given["patch_size"] * given["merge_size"],
            given["size"]["shortest_edge"], given["size"]["longest_edge"],
        )  # fmt: skip

    def preprocess(self, frames: np.ndarray, given: dict[str, Any]) -> tuple[torch.Tensor, list[int]]:
        colours = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())
        size = self.resized(*frames.shape[:3], given)
        if colours.shape[2:] != size:
            colours = torch.nn.functional.interpolate(colours, size, mode="bicubic", antialias=True)
        mean, std = (
            torch.tensor(one)[:, None, None] * (1.0 / (1 / 255)) for one in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        colours = colours.to(torch.float32).sub_(mean).div_(std)
        patches, *grid = self._of["patchify"](
            None, colours[None], given["patch_size"], given["merge_size"], given["temporal_patch_size"]
        )
        return patches[0], grid
