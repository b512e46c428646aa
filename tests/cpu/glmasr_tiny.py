"""Tiny GLM-ASR checkpoints made with transformers' own classes, with a tokenizer, a template and a processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers_for_tests import byte_level, write_folder
from transformers import GlmAsrConfig, GlmAsrForConditionalGeneration, GlmAsrProcessor, WhisperFeatureExtractor

from isobit.models.archs.glmasr import tiny

RATE = 16_000
SPECIAL = ("<|user|>", "<|assistant|>", "<|system|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>", "<|end|>")
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|' ~ message.role ~ '|>\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'audio' -%}{{- '<|begin_of_audio|><|pad|><|end_of_audio|><|user|>\n' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
)
SIZES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, one head for keys, other widths": {
        "text_config": {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 80},
        "audio_config": {"hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 2, "num_mel_bins": 80},
        "tie_word_embeddings": True,
    },
    "three layers, keys shared in the encoder": {
        "text_config": {"num_hidden_layers": 3},
        "audio_config": {"num_hidden_layers": 3, "num_key_value_heads": 2,
                         "rope_parameters": {"rope_type": "default", "rope_theta": 5e2, "partial_rotary_factor": 1.0}},
    },
}  # fmt: skip


def make(folder: Path, seed: int = 0, **changes: Any) -> Any:
    """Saves a checkpoint; returns transformers' model."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(list(SPECIAL))
    write_folder(folder, tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    size = tokenizer.get_vocab_size()
    keys = tiny()
    for key, value in changes.items():
        keys[key] = keys[key] | value if isinstance(value, dict) else value
    keys["text_config"] |= {"vocab_size": size, "eos_token_id": [tokenizer.token_to_id("<|end|>")]}
    keys["text_config"].pop("head_dim")
    keys["audio_token_id"] = tokenizer.token_to_id("<|pad|>")
    torch.manual_seed(seed)
    model = GlmAsrForConditionalGeneration(GlmAsrConfig(**keys)).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.08)
        elif "norm" in name and name.endswith("weight"):
            parameter.data.uniform_(0.5, 1.5)
        else:
            parameter.data.uniform_(-0.5, 0.5)
    transformers.utils.logging.disable_progress_bar()
    model.generation_config.eos_token_id = keys["text_config"]["eos_token_id"]
    model.generation_config.pad_token_id = keys["text_config"]["eos_token_id"][0]
    model.save_pretrained(folder)
    processor(folder).save_pretrained(folder)
    # The tokenizer as it was: what transformers writes of it is another test's.
    write_folder(folder, tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    return model


def processor(folder: Path) -> Any:
    """transformers' own."""
    bands = json.loads((folder / "config.json").read_text())["audio_config"]["num_mel_bins"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|end|>", pad_token="<|end|>"
    )
    return GlmAsrProcessor(WhisperFeatureExtractor(feature_size=bands), tokenizer, chat_template=TEMPLATE)


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> NDArray[np.float32]:
    """Something to hear: tones that come and go over a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time + p) for f, p in zip((180, 440, 1300), rng.uniform(0, 6, 3), strict=True))
    swell = np.square(np.sin(2 * np.pi * time * rng.uniform(0.3, 0.9)))
    return (0.1 * tones * swell + 0.01 * rng.standard_normal(len(time))).astype(np.float32)
