"""HunyuanOCR answers about images: greedily what transformers answers, alone, beside others and behind a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hunyuan_models as tiny
import pytest
import transformers
from hunyuan_models import picture, words

from isobit.engine import chat
from isobit.engine.generate import load_llm
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.errors import UsageError
from isobit.media.values import Picture
from isobit.models.cache.paged import BLOCK
from isobit.models.media import MediaPrompt

TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
CASES: list[tuple[tuple[int | None, ...], list[tuple[int, int]]]] = [
    ((5, None, 9), [(37, 51)]),
    ((None, 3, None, 30), [(5, 190), (64, 40)]),
    ((None,), [(64, 64)]),
    ((20, None, None, None, 2), [(1, 1), (64, 7), (200, 333)]),
    ((30,), []),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = tiny.make(7)
    return model, tiny.save_with_text(model, tmp_path_factory.mktemp("ocr"))


def load(folder: Path, **options: Any) -> LLM:
    return load_llm(folder, "float32", "cpu", **options)


def given(llm: LLM) -> list[tuple[MediaPrompt, list[Picture]]]:
    assert llm.tower is not None
    found = []
    for number, (parts, sizes) in enumerate(CASES):
        pictures = [picture(*size, seed=number) for size in sizes]
        found.append((llm.tower.prompt(words(*parts, seed=number), pictures), pictures))
    return found


def test_answers_alone_beside_others_and_behind_a_prefix(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    llm = load(folder, cache_tokens=4096)
    asked = given(llm)
    wanted = [tiny.answer(model, prompt.ids, pictures, TOKENS) for prompt, pictures in asked]
    assert len({tuple(ids) for ids in wanted}) == len(wanted)
    prompts = [prompt for prompt, _ in asked]
    together = llm.generate(prompts, GREEDY)
    assert [[*one.token_ids] for one in together] == wanted
    again = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert [[*one.token_ids] for one in again] == wanted
    cached = [one.usage.cached_tokens for one in again]
    assert [count > 0 for count in cached] == [len(prompt.ids) > BLOCK for prompt in prompts] and sum(
        cached
    ) > 2 * BLOCK
    alone = load(folder, prefix_cache=False)
    assert [[*alone.generate(prompt, GREEDY)[0].token_ids] for prompt in prompts] == wanted


def test_prompts_in_pieces_are_answered_alike(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    llm = load(folder, chunk=16)
    (prompt, pictures) = given(llm)[1]
    (found,) = llm.generate(prompt, GREEDY)
    assert [*found.token_ids] == tiny.answer(model, prompt.ids, pictures, TOKENS)


def test_another_image_at_the_same_place_is_another_prompt(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    llm = load(folder, cache_tokens=2048)
    assert llm.tower is not None
    ids, beginning = words(40, None, 3), SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    for seed in (1, 2, 1):
        pictures = [picture(40, 40, seed)]
        prompt = llm.tower.prompt(ids, pictures)
        (found,) = llm.generate(prompt, beginning)
        assert [*found.token_ids] == tiny.answer(model, prompt.ids, pictures, TOKENS)


def test_repetition_is_punished_as_the_files_say(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = saved
    llm = load(
        tiny.save_with_text(model, tmp_path / "model", do_sample=False, repetition_penalty=1.08, max_new_tokens=24)
    )
    differ = 0
    for prompt, pictures in given(llm):
        (found,) = llm.generate(prompt)
        wanted = tiny.answer(model, prompt.ids, pictures, 24, repetition_penalty=1.08)
        differ += wanted != tiny.answer(model, prompt.ids, pictures, 24)
        assert [*found.token_ids] == wanted
    assert differ


MESSAGES = [
    {"role": "system", "content": ""},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "提取文档图片中正文的所有信息 <｜hy_User｜>"}],
    },
]


def test_conversations_are_written_as_transformers_writes_them(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    llm = load(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    more = [
        *MESSAGES,
        {"role": "assistant", "content": "文"},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}]},
    ]
    for messages in (MESSAGES, more, [{"role": "system", "content": "OCR"}, {"role": "user", "content": "hi"}]):
        wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        special = llm.tokenizer.special_tokens
        assert chat.render(tiny.TEMPLATE, messages, special_tokens=special, add_generation_prompt=True) == wanted
        count = wanted.count(tiny.IMAGE)
        pictures = [picture(20 + number, 30) for number in range(count)]
        prompt = llm.media_prompt(tiny.TEMPLATE, messages, pictures)
        assert [id for id in prompt.ids if id == tiny.TOKEN] == [tiny.TOKEN] * sum(
            p.piece.tokens for p in prompt.placed
        )
        text = "".join(part.get("text", "") for part in (messages[1]["content"] if count else []))
        if "<｜" not in text:  # what people write is text, also where transformers would take it for a token
            plain = tiny.tokenizer().encode(wanted, add_special_tokens=False).ids
            assert [*prompt.ids] == plain
    steered = llm.media_prompt(tiny.TEMPLATE, MESSAGES, [picture(20, 30)]).ids
    assert steered.count(259) == 1  # the template's own


def test_what_is_not_seen_is_refused(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    llm = load(folder)
    with pytest.raises(UsageError, match="1 parts of type image, and there are 0 images"):
        llm.media_prompt(tiny.TEMPLATE, MESSAGES)
    with pytest.raises(UsageError, match="601 by 3 pixels"):
        llm.media_prompt(tiny.TEMPLATE, MESSAGES, [picture(3, 601)])
