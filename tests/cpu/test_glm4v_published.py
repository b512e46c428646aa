"""GLMs that see as they are published: sizes, chat templates, and answers that act on a screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import glm4v_models as glm
import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from isobit.engine import chat
from isobit.legalize.memory import kv_bytes_per_token
from isobit.models.archs import model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.config import SelfAttention
from isobit.models.feed_forward import Experts
from isobit.models.names import renamed
from isobit.models.planning import plans
from isobit.models.workload import workload
from isobit.server.reasoning import Splitter, marks_of, opened

sys.path.append(str(Path(__file__).parents[1] / "pure"))
from published_seeing import FLASH, GLM41V, GLM46V, SEEING, fp8

# Parameters in billions, and KiB of a cache for a token.
SIZES = {
    "GLM-4.1V-9B": (10.29, 40), "AutoGLM-Phone-9B": (10.29, 40), "GLM-4.6V-Flash": (10.29, 40),
    "GLM-4.5V": (107.7, 184), "GLM-4.6V": (107.7, 184), "GLM-4.6V-FP8": (107.7, 184),
}  # fmt: skip


def theirs(config: dict[str, Any]) -> Any:
    """transformers' model, without memory; of keys beside the section, which it overlooks, it is given a section."""
    cls = getattr(transformers, config["architectures"][0])
    keys = {key: value for key, value in config.items() if key not in ("architectures", "quantization_config")}
    if "text_config" not in keys:
        text = {key: value for key, value in keys.items() if key not in ("vision_config", "model_type")}
        keys = {"vision_config": keys["vision_config"], "text_config": text}
    with torch.device("meta"):
        return cls(cls.config_class(**keys))


# Of those with the same sizes, one; the others are marked slow.
ONCE = [pytest.param(name, marks=pytest.mark.slow if name in ("GLM-4.5V", "GLM-4.6V-FP8") else ()) for name in SEEING]


@pytest.mark.parametrize("name", ONCE)
def test_sizes(name: str) -> None:
    config = SEEING[name]
    found, model = expected_tensors(model_config(config)), theirs(config)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.named_parameters() if ".visual." not in key}
    names = renamed(wanted, model_config(config).layers[0].norms)
    own = {names.get(key, key): shape for key, shape in wanted.items() if ".experts." not in key or "shared" in key}
    assert {key: found[key] for key in own} == own
    decoder = sum(torch.Size(shape).numel() for shape in found.values())
    buffers = sum(one.numel() for key, one in model.named_buffers() if key.endswith("e_score_correction_bias"))
    assert decoder == sum(torch.Size(shape).numel() for shape in wanted.values()) + buffers
    tower = sum(one.numel() for key, one in model.named_parameters() if ".visual." in key)
    billions, kib = SIZES[name]
    assert round((decoder + tower) / 1e9, 2 if billions < 100 else 1) == billions
    assert kv_bytes_per_token(workload(config), "bfloat16") == kib * 1024


def test_what_the_published_decoders_are() -> None:
    for name, config in SEEING.items():
        model = model_config(config)
        part = model.layers[-1].attention
        assert isinstance(part, SelfAttention)
        assert part.rope is not None
        experts = isinstance(model.layers[-1].mlp, Experts)
        assert (part.rope.sections, part.rope.dims, part.rope.interleaved) == ((8, 12, 12), 64, not experts)
        assert part.rope.theta == (5e5 if "4.6V" in name else 1e4)
        assert (part.bias, part.o_bias, part.qk_norm) == (True, False, "none")
        assert model.max_context == (131072 if "4.6V" in name else 65536)
        assert model.notes == ()


@pytest.mark.parametrize("name", ONCE)
def test_they_are_planned(name: str) -> None:
    _, made = plans(SEEING[name], targets=("h200", "here"), scheme_names=("bf16", "fp8", "int4-g32"))
    assert [[plan.scheme for plan in row] for row in made]


def test_a_plan_of_a_configuration_knows_the_names_that_its_lists_use() -> None:
    """Which are those in files: of a decoder within a model that sees, others than its own."""
    left = ["model.language_model.layers.3.self_attn.o_proj", "re:model.language_model.*shared_experts.*", "lm_head"]
    work = workload(GLM46V | {"quantization_config": fp8(left)})
    assert work.stored is not None
    assert work.stored("model.layers.3.self_attn.o_proj") == (None, None)
    assert work.stored("model.layers.7.mlp.shared_experts.up_proj") == (None, None)
    for module in ("model.layers.4.self_attn.o_proj", "model.layers.3.mlp.experts.9.up_proj"):
        weights, activations = work.stored(module)
        assert weights is not None and activations is not None


def test_the_decoder_s_keys_count_wherever_they_stand() -> None:
    beside = {
        key: value for key, value in GLM41V.items() if key not in ("vision_config", "architectures", "model_type")
    }
    nested = {key: GLM41V[key] for key in ("vision_config", "architectures", "model_type")} | {"text_config": beside}
    assert model_config(GLM41V) == model_config(nested)
    assert model_config(FLASH | {"architectures": [glm.NEWER], "model_type": "glm46v"}) == model_config(FLASH)


# ---------------------------------------------------------------------- chats


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
SAID = {"type": "text", "text": "what\n is <|image|> it? "}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hello"}],
    [{"role": "user", "content": [IMAGE, SAID]}],
    [{"role": "user", "content": [SAID, IMAGE, SAID, IMAGE]}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": [VIDEO, SAID]}],
    [{"role": "user", "content": [IMAGE, VIDEO, SAID]}, {"role": "assistant", "content": " a cat "},
     {"role": "user", "content": [{"image": "data:", "type": "image"}, {"type": "text", "text": "and this?/nothink"}]}],
]  # fmt: skip
OPTIONS: list[dict[str, Any]] = [{}, {"add_generation_prompt": False}, {"enable_thinking": False}]


@pytest.mark.parametrize("template", [glm.FIRST_TEMPLATE, glm.SECOND_TEMPLATE], ids=["GLM-4.1V", "GLM-4.5V"])
def test_templates_render_as_in_transformers(template: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=glm.tokenizer(), eos_token="<|endoftext|>")
    for messages in CONVERSATIONS:
        for options in OPTIONS:
            asked = {"add_generation_prompt": True, **options}
            expected = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **asked)
            assert chat.render(template, messages, special_tokens=tokenizer.special_tokens_map, **asked) == expected
            parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
            texts = sum(part.get("text", "").count("<|image|>") for part in parts)
            assert expected.count("<|image|>") - texts == sum(part.get("type") == "image" for part in parts)


ACT = 'do(action="Tap", element=[499, 182])'
ANSWERS = [
    (f"<think>tap it</think><answer>{ACT}</answer>", "tap it", f"<answer>{ACT}</answer>"),
    (f"<think>\ntap it\n</think>\n<answer>{ACT}</answer>", "tap it", f"<answer>{ACT}</answer>"),
    (ACT, "", ACT),
    ('finish(message="done <b>")', "", 'finish(message="done <b>")'),
    ("<think>2</think>It is <|begin_of_box|>4<|end_of_box|>.", "2", "It is <|begin_of_box|>4<|end_of_box|>."),
]


@pytest.mark.parametrize(("text", "thoughts", "answer"), ANSWERS)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_nothing_of_an_answer_is_lost(text: str, thoughts: str, answer: str, step: int) -> None:
    """Thoughts go by themselves; what is marked as the answer, or boxed, stays as it is written."""
    marks = marks_of({"default": glm.SECOND_TEMPLATE})
    assert marks is not None
    splitter = Splitter(marks, opened("<|assistant|>\n", marks))
    pieces = [splitter.push(text[begin : begin + step]) for begin in range(0, len(text), step)] + [splitter.finish()]
    assert tuple("".join(parts) for parts in zip(*pieces, strict=True)) == (thoughts, answer)


def test_without_thoughts_in_the_template_an_answer_stays_whole() -> None:
    """GLM-4.1V's template writes no thoughts: its answers, those of AutoGLM too, come as they are."""
    assert marks_of({"default": glm.FIRST_TEMPLATE}) is None
    splitter = Splitter(None)
    assert [splitter.push(ANSWERS[0][0]), splitter.finish()] == [("", ANSWERS[0][0]), ("", "")]
