"""Answers under grammars: right whatever the model would say, and nothing else of an engine changes."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from numpy.typing import NDArray
from tokenizers_for_tests import KINDS, byte_level

from isobit import api
from isobit.cli.main import main
from isobit.engine import grammars, masking
from isobit.engine.grammar import Grammar
from isobit.engine.grammars import Grammars
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.sampler import Chooser, sample
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import IsobitError, Unsupported, UsageError

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "n"],
    "additionalProperties": False,
}


def tokenizer_of(kind: str, **more: Any) -> Tokenizer:
    return Tokenizer(KINDS[kind](), special_tokens={"bos_token": "<s>", "eos_token": "</s>"}, **more)


def noise(vocab: int, favourite: int | None = None) -> Any:
    """A model that says anything: logits that depend on the tokens so far, one token mostly the most probable."""

    def rule(ids: list[int]) -> torch.Tensor:
        logits = torch.from_numpy(np.random.default_rng(ids).normal(size=vocab) * 3).float()
        if favourite is not None:
            logits[favourite] += 30
        return logits

    return rule


def llm_of(tokenizer: Tokenizer, favourite: int | None = None, more: int = 0, **options: Any) -> LLM:
    vocab = tokenizer.vocab_size + more
    return LLM(FakeModel(vocab, noise(vocab, favourite), context=512), tokenizer, **options)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return llm_of(tokenizer_of("byte-level"))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("more", [0, 40, -1])
def test_json_is_right_whatever_the_model_says(kind: str, more: int) -> None:
    """Also where the model has more tokens than the tokenizer, and fewer."""
    tokenizer = tokenizer_of(kind)
    llm = llm_of(tokenizer, more=more)
    params = [SamplingParams(temperature=heat, seed=seed, max_tokens=200) for heat in (0.0, 1.5) for seed in range(4)]
    for answer in llm.generate([[5, 6]] * len(params), params, constraint=Grammar.json_schema(SCHEMA)):
        found = json.loads(answer.text)
        assert found["kind"] in ("a", "b") and 0 <= found["n"] <= 99 and len(found) == 2
        assert answer.finish_reason == "stop"


def test_other_grammars(llm: LLM) -> None:
    cases = [
        (Grammar.regex(r"\d{3}-[a-f]+"), r"\d{3}-[a-f]+"),
        (Grammar.choice(['a"b', "c\nd", "é🙂", "\\"]), re.escape('a"b') + "|c\nd|é🙂|" + re.escape("\\")),
        (Grammar.grammar('start: "x" NUMBER\nNUMBER: /[0-9]{2}/'), r"x\d\d"),
        (Grammar.grammar('root ::= item+ "."\nitem ::= "ab" | [c-e]'), r"(ab|[c-e])+\."),
    ]
    for grammar, expected in cases:
        params = [SamplingParams(temperature=2.0, seed=seed, max_tokens=400) for seed in range(3)]
        for answer in llm.generate([[5]] * 3, params, constraint=grammar):
            assert answer.finish_reason == "stop" and re.fullmatch(expected, answer.text), answer.text
    assert isinstance(json.loads(llm.generate([[9]], constraint=Grammar.json_object())[0].text), dict)


def test_it_ends_where_nothing_can_follow_without_an_end_token() -> None:
    """Also where the model has none, or is told to go on after it."""
    without = Tokenizer(byte_level())
    answer = llm_of(without).generate([[5]], constraint=Grammar.choice(["ab"]))[0]
    assert (answer.text, answer.finish_reason, answer.stop) == ("ab", "stop", None)
    ignoring = SamplingParams(ignore_eos=True, max_tokens=50)
    answer = llm_of(tokenizer_of("byte-level")).generate([[5]], ignoring, constraint=Grammar.choice(["ab"]))[0]
    assert (answer.text, answer.finish_reason) == ("ab", "stop")


def test_an_end_token_is_possible_where_the_answer_is_whole_and_only_there() -> None:
    tokenizer = tokenizer_of("byte-level")
    (end,) = tokenizer.eos_ids
    llm = llm_of(tokenizer, favourite=end)  # it would end at once
    answer = llm.generate([[5]], SamplingParams(max_tokens=50), constraint=Grammar.regex("a{3,}"))[0]
    assert (answer.text, answer.finish_reason, answer.stop) == ("aaa", "stop", end)


def test_what_ends_before_is_not_whole(llm: LLM) -> None:
    answer = llm.generate([[5]], SamplingParams(max_tokens=2), constraint=Grammar.regex("(xyz){20}"))[0]
    assert answer.finish_reason == "length" and "xyzxyz".startswith(answer.text)
    answer = llm.generate([[5]], SamplingParams(stop="zx"), constraint=Grammar.regex("(xyz){2}"))[0]
    assert (answer.text, answer.finish_reason, answer.stop) == ("xy", "stop", "zx")


def test_others_are_as_they_are_alone(llm: LLM) -> None:
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=12, logprobs=2) for seed in range(6)]
    alone = [llm.generate([[5, seed]], one)[0] for seed, one in enumerate(params)]
    ids = [
        llm.add([5, seed], one, constraint=Grammar.json_schema(SCHEMA) if seed % 2 else None)
        for seed, one in enumerate(params)
    ]
    ended = {}
    while llm.unfinished:
        ended |= {id: piece.completion for id, piece in llm.step() if piece.completion}
    for place in (0, 2, 4):
        assert ended[ids[place]].token_ids == alone[place].token_ids  # type: ignore[union-attr]
        assert ended[ids[place]].logprobs == alone[place].logprobs  # type: ignore[union-attr]
    for place in (1, 3, 5):
        assert '{"kind": "a", "n": 10}'[0] == ended[ids[place]].text[0]  # type: ignore[union-attr]


def test_answers_that_are_computed_again_are_the_same() -> None:
    tokenizer = tokenizer_of("byte-level")
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=100) for seed in range(6)]
    grammar = Grammar.regex("([a-z]{2} ){20}")
    answers = [
        [one.text for one in llm_of(tokenizer, cache_tokens=tokens).generate([[5]] * 6, params, constraint=grammar)]
        for tokens in (None, 128)
    ]
    assert answers[0] == answers[1] and all(re.fullmatch("([a-z]{2} ){20}", text) for text in answers[0])


def test_logprobs_are_the_models_own(llm: LLM) -> None:
    """Those of the tokens that were chosen, among all that the model could say."""
    answer = llm.generate([[5]], SamplingParams(logprobs=3), constraint=Grammar.choice(["ab"]))[0]
    assert answer.logprobs is not None
    first, logits = answer.logprobs[0], noise(llm.tokenizer.vocab_size)([5]).double()
    assert first.logprob == pytest.approx(float(logits.log_softmax(0)[first.id]), abs=1e-6)
    assert [id for id, _ in first.top] == logits.topk(3).indices.tolist()


class Only:
    """A constraint in Python: some tokens, then an error."""

    finished = False

    def __init__(self, tokens: list[int], words: int = 4) -> None:
        self.mask: NDArray[np.uint32] = np.zeros(words, np.uint32)
        for token in tokens:
            self.mask[token // 32] |= np.uint32(1 << token % 32)
        self.taken: list[int] = []

    def allowed(self) -> NDArray[np.uint32]:
        if self.taken:
            raise IsobitError("no more")
        return self.mask

    def accept(self, token: int) -> None:
        self.taken.append(token)


def test_masks_are_bits_of_tokens() -> None:
    for vocabulary in (31, 32, 33, 100, 128, 200):
        tokens = sorted(random.Random(vocabulary).sample(range(128), 20))
        logits = torch.randn(3, vocabulary, dtype=torch.float64)
        kept = logits.clone()
        assert masking.apply([None, Only(tokens).mask, None], logits) == []
        assert torch.equal(logits[[0, 2]], kept[[0, 2]])
        assert logits[1].isfinite().nonzero()[:, 0].tolist() == [token for token in tokens if token < vocabulary]
    logits = torch.zeros(2, 64, dtype=torch.float64)
    logits[:, 5] = -torch.inf
    assert masking.apply([Only([5]).mask, Only([]).mask], logits) == [0, 1]


def test_all_of_sampling_obeys() -> None:
    random.seed(0)
    logits = torch.randn(1, 100)
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 3.0, "min_p": 0.2},
        {"temperature": 0.0, "repetition_penalty": 3.0, "frequency_penalty": -2.0},
        {"temperature": 2.0, "logit_bias": {7: 100.0, 3: -100.0}},
    ]
    for seed in range(20):
        tokens = random.sample(range(100), 3)
        for each in settings:
            chooser = Chooser(SamplingParams(**each, seed=seed), [7, 8], Only(tokens))
            assert sample([Chooser(SamplingParams()), chooser], logits.repeat(2, 1))[1].token in tokens


def test_a_constraint_that_cannot_go_on_ends_its_own_answer(llm: LLM) -> None:
    logits = torch.randn(3, 100)
    logits[1, 5] = -torch.inf
    choosers = [Chooser(SamplingParams(), (), only) for only in (Only([3]), Only([5]), None)]
    choices = sample(choosers, logits)
    assert choices[0].token == 3 and choices[2].error is None
    assert "allows no token" in str(choices[1].error)
    choosers[0].add(3)
    assert str(sample(choosers, logits)[0].error) == "no more"
    with pytest.raises(IsobitError, match="no more"):
        llm.generate([[5]], constraint=Only([9]))
    assert llm.generate([[5]], SamplingParams(max_tokens=2))[0].usage.completion_tokens == 2
    with pytest.raises(UsageError, match="the state of one answer"):
        llm.generate([[5], [6]], constraint=Only([9]))


WRONG = [
    (lambda: Grammar.regex("["), "unclosed character class"),
    (lambda: Grammar.regex(r"(?=a)b"), "look-around"),
    (lambda: Grammar.regex("\ud800"), "lone surrogate"),
    (lambda: Grammar.regex("x" * 300_000), "at most"),
    (lambda: Grammar.regex(""), "not empty"),
    (lambda: Grammar.choice([]), "a choice is a list"),
    (lambda: Grammar.choice("ab"), "a choice is a list"),
    (lambda: Grammar.grammar("start: missing"), "unknown name"),
    (lambda: Grammar.grammar('root ::= "a'), "the grammar cannot be used"),
    (lambda: Grammar.grammar('root ::= ' + "(" * 50_000 + '"a"' + ")" * 50_000), "the grammar cannot be used"),
    (lambda: Grammar.grammar("start: " + "(" * 50_000 + '"a"' + ")" * 50_000), "too deeply nested"),
    (lambda: Grammar.grammar('start: % json {"not": {}}'), "%json"),
    (lambda: Grammar.grammar('start[temperature=0.5]: "a"'), "temperature"),
    (lambda: Grammar.json_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf has branches"),
    (lambda: Grammar.json_schema({"type": "string", "format": "bogus"}), "Unknown format"),
    (lambda: Grammar.json_schema({"enum": []}), "Unsatisfiable"),
    (lambda: Grammar.json_schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "back to itself"),
    (lambda: Grammar.json_schema({"const": "\ud800"}), "cannot be used"),
    (lambda: Grammar.grammar('start: start "a"'), "the grammar cannot be used: no text is right by it"),
    (lambda: Grammar.regex(r"[^\s\S]"), "the regular expression cannot be used: no text is right by it"),
]  # fmt: skip


@pytest.mark.parametrize("make, reason", WRONG)
def test_wrong_grammars_are_refused(llm: LLM, make: Any, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        llm.constraint(make())
    assert reason in str(caught.value) and len(str(caught.value)) < 2000


SLOW = {"type": "integer", "multipleOf": 1_000_003}


def test_compiling_has_limits_and_goes_on_after_them(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(grammars.LIMITS, seconds=0.3)
    compiler = Grammars(llm.tokenizer, llm.tokenizer.vocab_size, limits)
    with pytest.raises(UsageError, match="takes longer than 0.3 seconds"):
        compiler.constraint(Grammar.json_schema(SLOW))
    helper = compiler._helper
    assert helper is not None
    monkeypatch.setattr(helper, "_arguments", ("60", str(1 << 20)))  # less than it has already
    with pytest.raises(UsageError, match="needs more memory"):
        compiler.constraint(Grammar.choice([f"{n} " * 20 for n in range(1800)]))
    monkeypatch.undo()
    assert compiler.constraint(Grammar.choice(["a"])).allowed().any()
    assert helper._process is not None and helper._process.poll() is None
    process = helper._process
    del compiler, helper
    assert process.poll() is not None  # nobody asks it any more


def test_a_slow_grammar_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are answered while one is compiled."""
    llm = llm_of(tokenizer_of("byte-level"))
    begun, go = threading.Event(), threading.Event()
    compiled = llm._grammars._compiled

    def slowly(grammar: Grammar) -> Any:
        begun.set()
        assert go.wait(60)
        return compiled(grammar)

    monkeypatch.setattr(llm._grammars, "_compiled", slowly)

    async def one(constraint: Grammar | None) -> str:
        pieces = llm.stream_async([5], SamplingParams(max_tokens=4), constraint=constraint)
        return "".join([piece.text async for piece in pieces])

    async def both() -> str:
        slow = asyncio.create_task(one(Grammar.choice(["ab"])))
        await asyncio.to_thread(begun.wait, 60)
        await one(None)
        assert not slow.done()
        go.set()
        return await slow

    assert asyncio.run(both()) == "ab"


def test_compiled_grammars_are_kept_and_bounded(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Grammars(llm.tokenizer, llm.tokenizer.vocab_size, replace(grammars.LIMITS, kept=4 * grammars._LEAST))
    done: list[Grammar] = []
    compiled = compiler._compiled
    monkeypatch.setattr(compiler, "_compiled", lambda grammar: (done.append(grammar), compiled(grammar))[1])
    many = [Grammar.choice([f"text {n}"]) for n in range(6)]
    first, second = compiler.constraint(many[0]), compiler.constraint(many[0])
    assert len(done) == 1
    first.accept(int(np.flatnonzero(np.unpackbits(first.allowed().view(np.uint8), bitorder="little"))[0]))
    assert first.allowed().tobytes() != second.allowed().tobytes()  # each answer has a state of its own
    for grammar in many:
        compiler.constraint(grammar)
    assert len(done) == 6 and len(compiler._kept) < 5
    large = Grammar.choice(["x" * 50_000])
    compiler.constraint(large)
    assert list(compiler._kept) == [large]


def test_a_tokenizer_that_cannot_be_used_is_said() -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import models

    words = Tokenizer(Fast(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(Unsupported, match="tokenizer"):
        llm_of(words).generate([[0]], constraint=Grammar.choice(["a"]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "list.gbnf").write_text('root ::= "- " [a-z]{1,5} "\\n- " [0-9]+ "."')
    begin = ["generate", "bundled", "x = ", "--max-tokens", "60", "--no-stream"]
    for option, value, expected in (
        ("--json-schema", str(tmp_path / "schema.json"), r'\{\s*"kind":\s*"[ab]"\s*,\s*"n":\s*\d+\s*\}\n'),
        ("--regex", "[a-c]{2}-[0-9]", r"[a-c]{2}-\d\n"),
        ("--grammar", str(tmp_path / "list.gbnf"), r"- [a-z]+\n- \d+\.?\n"),
    ):
        assert main([*begin, option, value]) == 0
        assert re.fullmatch(expected, capsys.readouterr().out)
    (tmp_path / "schema.json").write_text('{"not": {}}')
    assert main([*begin, "--json-schema", str(tmp_path / "schema.json")]) == 2
    assert "not: list what may be there" in capsys.readouterr().err


def test_the_interface_and_the_bundled_model() -> None:
    import isobit

    model = api.load("bundled")
    grammar = isobit.Grammar.json_schema(SCHEMA)
    text = model.generate("config = ", max_tokens=60, constraint=grammar).text
    assert set(json.loads(text)) == {"kind", "n"}
    assert "".join(piece.text for piece in model.stream("config = ", max_tokens=60, constraint=grammar)) == text
