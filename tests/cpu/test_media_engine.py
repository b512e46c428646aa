"""Prompts with pictures in the engine: it says what the model says of the whole prompt, however it gets there."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_tower import FakeTower, Unreadable, picture
from families import make_model, save
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.answer import Completion
from isobit.engine.gallery import Gallery, sights_of
from isobit.engine.gpu_runner import GpuRunner
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.request import Part, Schedule
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, IsobitError, UsageError
from isobit.models.batch import Batch, Overlay
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.layers import Layer
from isobit.models.media import MediaPrompt, Piece, Placed
from isobit.models.weights import load_model

PLACEHOLDER = 7
GREEDY = SamplingParams(max_tokens=12, logprobs=2, ignore_eos=True)
Given = MediaPrompt | list[int]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


def sectioned(model: Decoder) -> Decoder:
    """The same weights in a model whose tokens have positions on three axes."""
    layers = tuple(
        replace(layer, attention=replace(layer.attention, rope=replace(layer.attention.rope, sections=(8, 10, 14))))
        for layer in model.config.layers
    )
    inner = [layer for layer in model.layers if isinstance(layer, Layer)]
    config = replace(model.config, layers=layers)
    return Decoder(config, model.embed_tokens, inner, model.norm, model.lm_head, model.dtype, model.place).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_model("LlamaForCausalLM", tie_word_embeddings=False, max_position_embeddings=1024)
    return save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Decoder:
    found = sectioned(load_model(folder))
    if found.layer_ops.name != "cpu":
        pytest.skip("there are no CPU kernels")
    return found


def made(model: Decoder) -> FakeTower:
    return FakeTower(model.config.hidden_size, PLACEHOLDER)


def words(count: int, seed: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(8, 300) for _ in range(count)]


def prompts(tower: FakeTower) -> list[Given]:
    """One picture, two, the first of them again with other words, one at the end, none, and one that fills blocks."""
    one, two, wide = picture(5, 6, 1), picture(4, 3, 2), picture(12, 13, 3)
    return [
        tower.prompt([*words(9, 1), PLACEHOLDER, *words(5, 2)], [one]),
        tower.prompt([*words(20, 3), PLACEHOLDER, *words(3, 4), PLACEHOLDER, *words(30, 5)], [one, two]),
        tower.prompt([*words(9, 1), PLACEHOLDER, *words(70, 6)], [one]),
        words(40, 7),
        tower.prompt([*words(3, 8), PLACEHOLDER], [two]),
        tower.prompt([PLACEHOLDER, *words(4, 9), PLACEHOLDER, *words(2, 10)], [wide, one]),
        tower.prompt([PLACEHOLDER, *words(90, 11)], [wide]),
    ]  # fmt: skip


@torch.inference_mode()
def whole(model: Decoder, tower: FakeTower, prompt: Given, tokens: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities behind each token of prompt and answer, computed at once and without a cache."""
    if isinstance(prompt, list):
        return model.forward(Batch.of([[*prompt, *tokens]])).log_softmax(-1)
    overlay = Overlay(
        torch.tensor([place for one in prompt.placed for place in one.places]),
        torch.cat([tower.encode(one.piece) for one in prompt.placed]),
    )
    assert prompt.positions is not None and prompt.following is not None
    answer = torch.arange(len(tokens))[:, None].expand(-1, 3) + prompt.following
    positions = torch.cat((prompt.positions, answer))
    batch = Batch.of([[*prompt.ids, *tokens]], positions=[positions], overlays=[overlay])
    return model.forward(batch).log_softmax(-1)


def require_right(model: Decoder, tower: FakeTower, prompt: Given, found: Completion) -> None:
    """That a greedy answer, and what it says of its tokens, are the model's own."""
    count = len(prompt) if isinstance(prompt, list) else len(prompt.ids)
    tokens = found.token_ids
    wanted = whole(model, tower, prompt, tokens[:-1])
    assert len(tokens) in (12, 70) and found.logprobs is not None
    for at, score in enumerate(found.logprobs):
        row = wanted[count - 1 + at]
        assert score.logprob == pytest.approx(float(row[tokens[at]]), abs=2e-3)
        assert float(row[tokens[at]]) > float(row.max()) - 1e-3
    for at, score in enumerate(found.prompt_logprobs or ()):
        if score is not None:
            ids = prompt if isinstance(prompt, list) else prompt.ids
            assert score.logprob == pytest.approx(float(wanted[at - 1][ids[at]]), abs=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"sequences": 1}, marks=pytest.mark.slow),
        {"chunk": 7, "sequences": 3},
        pytest.param({"chunk": 3, "sequences": 2, "prefix_cache": False}, marks=pytest.mark.slow),
        {"cache_tokens": 6 * BLOCK, "sequences": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
def test_answers_are_those_of_the_whole_prompt(
    options: dict[str, Any], ahead: bool, model: Decoder, tokenizer: Tokenizer
) -> None:
    require_all_right(options, ahead, model, tokenizer)


def test_the_reference_gives_them_too(folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    model = sectioned(load_model(folder))
    assert model.layer_ops.name == "reference"
    require_all_right({"chunk": 7, "sequences": 3}, False, model, tokenizer)


def require_all_right(options: dict[str, Any], ahead: bool, model: Decoder, tokenizer: Tokenizer) -> None:
    tower, given = made(model), prompts(made(model))
    runner = GpuRunner(model, options.get("sequences", 8)) if ahead else None
    llm = LLM(model, tokenizer, runner, tower=tower, **options)
    if ahead:
        llm.prepare()
    usual = replace(GREEDY, max_tokens=70) if "cache_tokens" in options else GREEDY
    params = [replace(usual, prompt_logprobs=0) if at in (1, 6) else usual for at in range(len(given))]
    for _ in range(2):
        found = llm.generate(given, params)
        for prompt, one in zip(given, found, strict=True):
            require_right(model, made(model), prompt, one)
    while llm.unfinished:
        llm.step()
    gallery = llm.engine._gallery
    assert not gallery._visitors and not gallery._holders and llm.engine.pool.free == llm.engine.pool.count
    assert ("cache_tokens" in options) == (llm.engine.scheduler.preemptions > 0)
    if options.get("prefix_cache", True) and not llm.engine.scheduler.preemptions:
        assert sorted(tower.encoded) == sorted(set(tower.encoded)), "a picture is encoded once, whoever shows it"


def test_the_cache_tells_pictures_apart(model: Decoder, tokenizer: Tokenizer) -> None:
    tower = made(model)
    before, behind = words(BLOCK + 3, 20), words(BLOCK, 21)
    given = [
        tower.prompt([*before, PLACEHOLDER, *behind], [picture(8, 9, seed)]) for seed in (1, 2, 1)
    ]  # fmt: skip
    turned = tower.prompt([*before, PLACEHOLDER, *behind], [picture(9, 8, 1)])  # as many tokens, other positions
    llm = LLM(model, tokenizer, tower=tower, cache_tokens=20 * BLOCK)
    cached = []
    for prompt in [*given, turned, given[1]]:
        (found,) = llm.generate(prompt, GREEDY)
        require_right(model, made(model), prompt, found)
        cached.append(found.usage.cached_tokens)
    full = len(given[0].ids) // BLOCK * BLOCK
    assert cached == [0, BLOCK, full, BLOCK, full]
    assert tower.encoded == [8, 8, 9], "what is found in the cache is not encoded"


def test_words_in_front_of_a_picture_are_shared_with_prompts_of_words(model: Decoder, tokenizer: Tokenizer) -> None:
    tower, before = made(model), words(BLOCK + 9, 22)
    llm = LLM(model, tokenizer, tower=tower)
    llm.generate([before], GREEDY)
    (found,) = llm.generate(tower.prompt([*before, PLACEHOLDER], [picture(3, 3, 1)]), GREEDY)
    assert found.usage.cached_tokens == BLOCK
    (found,) = llm.generate([[*before, *[PLACEHOLDER] * BLOCK]], GREEDY)
    assert found.usage.cached_tokens == BLOCK


def test_a_picture_that_is_half_in_the_cache_is_encoded_for_the_other_half(
    model: Decoder, tokenizer: Tokenizer
) -> None:
    tower, shown = made(model), picture(10, 10, 1)
    llm = LLM(model, tokenizer, tower=tower)
    llm.engine._gallery._kept = 0
    first = tower.prompt([PLACEHOLDER, *words(3, 1)], [shown])
    other = tower.prompt([PLACEHOLDER, *words(8, 2)], [shown])
    llm.generate(first, GREEDY)
    (found,) = llm.generate(other, GREEDY)
    assert found.usage.cached_tokens == BLOCK and tower.encoded == [10, 10]
    require_right(model, made(model), other, found)


def test_the_next_turn_finds_the_answer_too(model: Decoder, tokenizer: Tokenizer) -> None:
    """Its positions go on from the picture's, in the answer and in the prompt that repeats it."""
    tower = made(model)
    ids = [*words(4, 1), PLACEHOLDER, *words(9, 2)]
    llm = LLM(model, tokenizer, tower=tower)
    (first,) = llm.generate(tower.prompt(ids, [picture(6, 6, 1)]), replace(GREEDY, max_tokens=80))
    second = tower.prompt([*ids, *first.token_ids, *words(5, 3)], [picture(6, 6, 1)])
    (found,) = llm.generate(second, GREEDY)
    assert found.usage.cached_tokens == BLOCK * ((49 + 79) // BLOCK) and tower.encoded == [6]
    require_right(model, made(model), second, found)


def test_bits_are_the_same_alone_and_in_a_batch(folder: Path, tokenizer: Tokenizer) -> None:
    model = sectioned(load_model(folder, batch_invariant=True))
    tower, params = made(model), replace(GREEDY, prompt_logprobs=1)
    given = prompts(tower)
    alone = [LLM(model, tokenizer, tower=tower).generate([prompt], params) for prompt in given]
    for options in ({"chunk": 11, "sequences": 5}, {"cache_tokens": 6 * BLOCK}, {}):
        llm = LLM(model, tokenizer, tower=tower, **options)  # type: ignore[arg-type]
        for (one,), other in zip(alone, llm.generate(given, params), strict=True):
            assert (one.token_ids, one.logprobs, one.prompt_logprobs) == (
                other.token_ids, other.logprobs, other.prompt_logprobs
            )  # fmt: skip


def test_one_that_cannot_be_encoded_fails_alone(model: Decoder, tokenizer: Tokenizer) -> None:
    tower = made(model)
    tower.broken = {5: Unreadable("this picture cannot be seen"), 4: ValueError("negative dimensions")}
    given = prompts(tower)
    for ahead in (False, True):
        llm = LLM(model, tokenizer, GpuRunner(model, 8) if ahead else None, tower=tower, chunk=20, sequences=7)
        came: dict[int, Any] = {llm.add(prompt, GREEDY): None for prompt in given}
        while llm.unfinished:
            for id, piece in llm.step():
                came[id] = piece.error or piece.completion or came[id]
        ends = list(came.values())
        assert [isinstance(end, Unreadable) for end in ends] == [True, True, True, False, False, True, False]
        assert isinstance(ends[4], IsobitError) and "the image cannot be encoded: ValueError: negative" in str(ends[4])
        for at in (3, 6):
            require_right(model, made(model), given[at], ends[at])
        assert not llm.engine._gallery._visitors and llm.engine.pool.free == llm.engine.pool.count
    with pytest.raises(Unreadable):
        LLM(model, tokenizer, tower=tower).generate(given[0], GREEDY)


def test_embeddings_of_another_shape_are_refused(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTower, "encode", lambda self, piece: torch.zeros(3, self.hidden))
    tower = made(model)
    with pytest.raises(IsobitError, match=r"stands for 30 tokens and was encoded as \[3, "):
        LLM(model, tokenizer, tower=tower).generate(prompts(tower)[0], GREEDY)


def test_an_aborted_prompt_leaves_nothing(model: Decoder, tokenizer: Tokenizer) -> None:
    tower = made(model)
    llm = LLM(model, tokenizer, tower=tower, chunk=4, sequences=2)
    id = llm.add(prompts(tower)[5], GREEDY)
    llm.step()
    gallery = llm.engine._gallery
    assert gallery._holders and tower.encoded == [12]
    llm.abort(id)
    llm.step()
    assert not gallery._visitors and not gallery._holders
    assert llm.engine.pool.free == llm.engine.pool.count


def test_a_prompt_that_waits_goes_on_behind_a_fault(model: Decoder, tokenizer: Tokenizer) -> None:
    tower = made(model)
    llm = LLM(model, tokenizer, tower=tower, sequences=1)
    given = prompts(tower)[:2]
    first, second = (llm.add(prompt, GREEDY) for prompt in given)
    llm.step()
    before = llm.engine
    llm._fault(RuntimeError("a step has failed"))
    assert llm.engine is not before
    came: dict[int, Any] = {}
    while llm.unfinished:
        for id, piece in llm.step():
            came[id] = piece.error or piece.completion
    assert "a step has failed" in str(came[first])
    require_right(model, made(model), given[1], came[second])


def test_what_nobody_needs_is_kept_as_far_as_there_is_room() -> None:
    encoded: list[bytes] = []

    def encode(piece: Piece) -> torch.Tensor:
        encoded.append(piece.key)
        return torch.zeros(piece.tokens, 4)

    gallery = Gallery(encode, kept=2 * 16 * 4)
    pieces = [Piece.of("image", {"n": torch.tensor([number])}, 4) for number in range(3)]
    for id, piece in enumerate([*pieces, pieces[1], pieces[2], pieces[0]]):
        prompt = MediaPrompt((1,) * 4, (Placed(piece, (0, 1, 2, 3)),))
        gallery.enter(id, prompt, sights_of(prompt))
        assert not gallery.ready(Schedule((Part(id, 0, prompt.ids, (0,), True, looks=True),), 64))
        gallery.leave(id)
    assert encoded == [*(piece.key for piece in pieces), pieces[0].key]


def test_prompts_are_scored(model: Decoder, tokenizer: Tokenizer) -> None:
    tower = made(model)
    llm = LLM(model, tokenizer, tower=tower)
    first, second = (one for one in prompts(tower)[:2] if isinstance(one, MediaPrompt))
    found = llm.score([first, second], [40, 1])
    assert [len(scores) for scores in found] == [4, len(second.ids) - 1]
    for prompt, scores, place in ((first, found[0], 40), (second, found[1], 1)):
        wanted = whole(model, made(model), prompt, ())
        for at, score in enumerate(scores, place):
            assert score.logprob == pytest.approx(float(wanted[at - 1][prompt.ids[at]]), abs=2e-3)


def test_streams_and_tokens_of_positions_that_are_places(folder: Path, tokenizer: Tokenizer) -> None:
    """A family whose towers give embeddings alone."""
    model = load_model(folder)
    tower = FakeTower(model.config.hidden_size, PLACEHOLDER, axes=1)
    prompt = tower.prompt([*words(9, 1), PLACEHOLDER, *words(5, 2)], [picture(5, 6, 1)])
    assert prompt.positions is None and prompt.shift == 0
    *_, last = LLM(model, tokenizer, tower=tower, chunk=10).stream(prompt, GREEDY)
    overlay = Overlay(torch.tensor(prompt.placed[0].places), tower.encode(prompt.placed[0].piece))
    assert last.completion is not None
    tokens = last.completion.token_ids
    with torch.inference_mode():
        logits = model.forward(Batch.of([[*prompt.ids, *tokens[:-1]]], overlays=[overlay]))
    assert logits[len(prompt.ids) - 1 :].argmax(-1).tolist() == list(tokens)


def test_positions_may_be_ahead_of_places(model: Decoder, tokenizer: Tokenizer) -> None:
    """Which no family has yet; recorded steps have tables for the whole context."""
    tower = made(model)
    near = tower.prompt([*words(9, 1), PLACEHOLDER, *words(5, 2)], [picture(5, 6, 1)])
    assert near.positions is not None and near.following is not None
    far = replace(near, positions=near.positions + 700, following=near.following + 700)
    for ahead in (False, True):
        llm = LLM(model, tokenizer, GpuRunner(model, 4) if ahead else None, tower=tower, cache_tokens=4 * BLOCK)
        for prompt, found in zip((near, far), llm.generate([near, far], GREEDY), strict=True):
            require_right(model, made(model), prompt, found)
            assert found.usage.cached_tokens == 0


# What cannot be


def test_a_model_without_a_tower_refuses_media(model: Decoder, tokenizer: Tokenizer) -> None:
    prompt = prompts(made(model))[0]
    with pytest.raises(UsageError, match="reads text alone"):
        LLM(model, tokenizer).generate(prompt, GREEDY)
    with pytest.raises(UsageError, match="pip install"):
        LLM(model, tokenizer, tower="images need transformers: pip install 'isobit[media]'").generate(prompt, GREEDY)
    messages = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(UsageError, match="reads text alone"):
        LLM(model, tokenizer).media_prompt("{{ messages }}", messages)


def test_pieces_that_do_not_fit_their_prompt_are_refused(model: Decoder, tokenizer: Tokenizer) -> None:
    tower = made(model)
    llm = LLM(model, tokenizer, tower=tower)
    good = tower.prompt([*words(9, 1), PLACEHOLDER], [picture(2, 2, 1)])
    (one,) = good.placed
    assert good.positions is not None
    wrong: list[tuple[MediaPrompt, str]] = [
        (replace(good, placed=(replace(one, places=(9, 10, 11)),)), "a piece of 4 tokens has 3 places"),
        (replace(good, placed=(replace(one, places=(9, 10, 12, 11)),)), "a piece of 4 tokens has 4 places"),
        (replace(good, placed=(replace(one, places=(10, 11, 12, 13)),)), "at places of their own, from 0 to 12"),
        (replace(good, placed=(one, one)), "at places of their own"),
        (replace(good, placed=(Placed(Piece.of("image", {}, 0), ()),)), "a piece of 0 tokens"),
        (replace(good, positions=good.positions[:5]), r"expected positions, int64 \[13, 3\]"),
        (replace(good, positions=good.positions[:, :2].contiguous()), r"expected positions, int64 \[13, 3\]"),
        (replace(good, positions=good.positions - 1), r"expected positions, int64 \[13, 3\] from 0 on"),
        (replace(good, positions=good.positions.float()), r"expected positions, int64 \[13, 3\]"),
        (replace(good, ids=(*good.ids[:-1], 5000)), "outside the model's vocabulary"),
    ]
    for prompt, why in wrong:
        with pytest.raises(UsageError, match=why):
            llm.generate(prompt, GREEDY)
    for prompt in (replace(good, positions=good.positions + 2000), replace(good, following=1020)):
        with pytest.raises(CapacityError, match="the positions of prompt and answer reach"):
            llm.generate(prompt, GREEDY)
    with pytest.raises(UsageError, match="a vector is made of text"):
        llm.embed(good)


# Conversations

TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<|end|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def test_what_people_write_is_never_a_place_for_a_picture(model: Decoder, tokenizer: Tokenizer) -> None:
    token = tokenizer.encode("<|end|>", add_special=False)
    assert len(token) == 1 and not tokenizer.is_special(token[0])  # and it steers all the same
    tower = FakeTower(model.config.hidden_size, token[0])
    llm = LLM(model, tokenizer, tower=tower)
    parts = [{"type": "text", "text": "an <|end|> of"}, {"type": "image"}, {"type": "text", "text": "<|end|>"}]
    prompt = llm.media_prompt(TEMPLATE, [{"role": "user", "content": parts}], [picture(2, 3, 1)])
    assert [one.places for one in prompt.placed] == [
        tuple(range(prompt.ids.index(token[0]), prompt.ids.index(token[0]) + 6))
    ]
    assert prompt.ids.count(token[0]) == 6
    text = tokenizer.decode([id for id in prompt.ids if id != token[0]], skip_special=False)
    assert text == "an <|end|> of<|end|>"
    (found,) = llm.generate(prompt, GREEDY)
    require_right(model, tower, prompt, found)
    plain = llm.media_prompt(TEMPLATE, [{"role": "user", "content": "<|end|>"}])
    assert token[0] not in plain.ids and not plain.placed and plain.shift == 0


def test_media_and_their_places_must_be_as_many(model: Decoder, tokenizer: Tokenizer) -> None:
    tower = FakeTower(model.config.hidden_size, tokenizer.encode("<|end|>", add_special=False)[0])
    llm = LLM(model, tokenizer, tower=tower)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    for media in ([], [picture(1, 1, 1)] * 2):
        with pytest.raises(UsageError, match=f"1 parts and {len(media)} media"):
            llm.media_prompt(TEMPLATE, messages, media)
    with pytest.raises(UsageError, match="the prompt has 2 places for images, and there are 1"):
        llm.media_prompt(TEMPLATE + "<|end|>", messages, [picture(1, 1, 1)])
