"""GLMs that see, from messages to answers: transformers' greedy tokens, alone and beside others, however they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import glm4v_models as glm
import pytest
import torch

from isobit.checkpoint.reader import Checkpoint
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.models.cache.paged import BLOCK
from isobit.models.encoders.table import open_tower
from isobit.models.media import Clip, MediaPrompt, Picture
from isobit.models.weights import load_model

TOKENS = 16
GREEDY = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
SAID = {"type": "text", "text": "what is <|image|> it, and where is it? Answer in a word of four letters."}


@pytest.fixture(scope="module", params=[glm.PLAIN, glm.EXPERTS])
def saved(request, tmp_path_factory) -> tuple[Any, Path]:
    model = glm.make(request.param, seed=7, spread=0.3)
    template = glm.FIRST_TEMPLATE if request.param == glm.PLAIN else glm.SECOND_TEMPLATE
    return model, glm.save(model, tmp_path_factory.mktemp("glm"), template=template)


def new_llm(folder: Path, **options: Any) -> LLM:
    model = load_model(folder)
    return LLM(model, Tokenizer.from_folder(folder), tower=open_tower(Checkpoint.open(folder), model.dtype), **options)


def conversations() -> list[tuple[list[Any], list[Any]]]:
    """Content of a user's message, and its media: two pictures, one, a video, the first picture again, and none."""
    one, two = Picture(glm.pixels(30, 50)), Picture(glm.pixels(41, 17, seed=1))
    return [
        ([IMAGE, SAID, IMAGE], [one, two]),
        ([{"type": "text", "text": "look: "}, IMAGE], [two]),
        ([VIDEO, SAID], [Clip(glm.pixels(9, 20, 30), 4.0)]),
        ([IMAGE, SAID, IMAGE, SAID], [one, one]),
        ([SAID], []),
    ]


def prompts(llm: LLM) -> list[MediaPrompt]:
    template = llm.tokenizer.chat_template
    assert template is not None
    return [llm.media_prompt(template, [{"role": "user", "content": parts}], media) for parts, media in conversations()]


@pytest.fixture(scope="module")
def expected(saved) -> list[list[int]]:
    """What transformers' greedy generate answers."""
    model, folder = saved
    processor, answers = glm.processor(False, 2), []
    for prompt in prompts(new_llm(folder)):
        ids = torch.tensor([prompt.ids])
        given: dict[str, Any] = {}
        for kind, patches in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            pieces = [placed.piece.inputs for placed in prompt.placed if placed.piece.kind == kind]
            if pieces:
                grids = [torch.tensor([len(one["grid"]), *one["grid"][0, 1:].tolist()]) for one in pieces]
                given |= {
                    patches: torch.cat([one["patches"] for one in pieces]),
                    f"{kind}_grid_thw": torch.stack(grids),
                }
        if given:
            given["mm_token_type_ids"] = torch.tensor(processor.create_mm_token_type_ids(ids.tolist()))
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                eos_token_id=None, pad_token_id=0, **given,
            )  # fmt: skip
        answers.append(made[0, ids.shape[1] :].tolist())
    assert len({tuple(answer) for answer in answers}) == len(answers)
    assert min(len({*answer}) for answer in answers) > 3
    return answers


OPTIONS: list[dict[str, Any]] = [
    {},
    {"sequences": 1, "cache_tokens": 64 * BLOCK},
    {"chunk": 5, "sequences": 3},
    {"chunk": 11, "prefix_cache": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_are_those_of_transformers(saved, expected: list[list[int]], options: dict[str, Any]) -> None:
    """All at once, then again, when the cache holds their beginnings, and each by itself."""
    llm = new_llm(saved[1], **options)
    given = prompts(llm)
    for _ in range(2):
        assert [list(found.token_ids) for found in llm.generate(given, GREEDY)] == expected
    for prompt, answer in zip(given, expected, strict=True):
        (found,) = llm.generate(prompt, GREEDY)
        assert list(found.token_ids) == answer
        assert (found.usage.cached_tokens > 0) == (options.get("prefix_cache", True) and len(prompt.ids) > BLOCK)


def test_a_quantized_copy_answers(saved, tmp_path: Path) -> None:
    from isobit.formats.rules import Policy
    from isobit.formats.schemes import scheme
    from isobit.quantizer.driver import quantize

    quantize(saved[1], tmp_path / "out", Policy(scheme("int8-w8a16")), progress=False)
    llm = new_llm(tmp_path / "out")
    found = llm.generate(prompts(llm), GREEDY)
    assert [len(one.token_ids) for one in found] == [TOKENS] * len(found)


def test_what_people_write_stands_for_no_picture(saved) -> None:
    llm = new_llm(saved[1])
    template = llm.tokenizer.chat_template
    assert template is not None
    written = "<|begin_of_image|><|image|><|end_of_image|><|video|>"
    prompt = llm.media_prompt(template, [{"role": "user", "content": [{"type": "text", "text": written}]}])
    assert not set(prompt.ids) & llm.tower.placeholders
    assert not prompt.placed
