"""Where begin-of-text stands and where texts are cut when tasks are scored; how tasks say what to generate."""

from __future__ import annotations

import pytest

from isobit.errors import CheckpointError
from isobit.evaluation.tasks.generation import continued, sampling
from isobit.evaluation.tasks.rules import BosRule, cut

BOS, EOS = 1, 2


class Letters:
    """A tokenizer of letters, which may put begin-of-text in front."""

    def __init__(self, adds: bool, bos: bool = True, eos: bool = True) -> None:
        self.adds = adds
        self.special_tokens = {**({"bos_token": "<s>"} if bos else {}), **({"eos_token": "</s>"} if eos else {})}
        self.bos_id = BOS if bos else None
        self.eos_ids = frozenset({EOS} if eos else ())

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        ids = [BOS] if self.adds and add_special else []
        while text:
            special = next((name for name in ("<s>", "</s>") if text.startswith(name)), None)
            ids.append({"<s>": BOS, "</s>": EOS}[special] if special else ord(text[0]))
            text = text[len(special or "x") :]
        return ids


@pytest.mark.parametrize(
    ("adds", "asked", "text", "ids"),
    [
        (False, None, "ab", [97, 98]),
        (True, None, "ab", [BOS, 97, 98]),
        (True, None, "<s>ab", [BOS, 97, 98]),  # once
        (True, False, "ab", [97, 98]),
        (False, True, "ab", [BOS, 97, 98]),
        (False, True, "<s>ab", [BOS, 97, 98]),
        (True, True, "ab", [BOS, 97, 98]),
    ],
)
def test_begin_of_text_stands_once_or_never(adds: bool, asked: bool | None, text: str, ids: list[int]) -> None:
    tokenizer = Letters(adds)
    rule = BosRule.of(tokenizer, asked)
    assert rule.encode(tokenizer, text) == ids
    assert rule.encode(tokenizer, "ab", special=False) == [97, 98]
    assert ("no begin-of-text" in str(rule)) == (ids[0] != BOS or (not rule.adds))
    assert ("as asked" in str(rule)) == (asked is not None)


def test_what_stands_before_a_text_without_a_context() -> None:
    assert BosRule.of(Letters(True)).prefix == BOS
    assert BosRule.of(Letters(False, bos=False)).prefix == EOS
    with pytest.raises(CheckpointError, match="neither begin-of-text nor end-of-text"):
        BosRule.of(Letters(False, bos=False, eos=False))


def test_what_is_too_long_loses_its_beginning() -> None:
    assert cut([1, 2, 3], [4, 5], 4) == cut([1, 2, 3], [4, 5], 99)
    assert cut([1, 2, 3], [4, 5], 4).ids == (1, 2, 3, 4, 5)  # the last one is predicted, not read
    found = cut([1, 2, 3], [4, 5], 3)
    assert (found.ids, found.first_scored, found.lost) == ((2, 3, 4, 5), 2, 1)
    found = cut([1, 2], [3, 4, 5, 6], 3)
    assert (found.ids, found.first_scored, found.lost) == ((3, 4, 5, 6), 1, 2)
    assert cut([1], [], 5).first_scored == 1


def test_settings_of_a_task_in_the_engines_words() -> None:
    given = {"until": ["\n", "", "\n"], "max_gen_toks": 40, "do_sample": True, "temperature": 0.8, "top_p": 0.9}
    params, left_out = sampling(given, 7, 100)
    assert (params.stop, params.max_tokens, params.temperature, params.top_p, params.seed) == (("\n",), 40, 0.8, 0.9, 7)
    assert left_out == ()
    params, left_out = sampling({"until": [], "max_gen_toks": 300, "temperature": 0.8, "num_beams": 4}, 7, 100)
    assert (params.temperature, params.max_tokens) == (0.0, 50)
    assert len(left_out) == 2 and "'num_beams'" in left_out[0] and "300 tokens are cut to 50" in left_out[1]
    many = [str(number) for number in range(100)]
    assert len(sampling({"until": many, "max_gen_toks": 1}, 0, 9)[0].stop) == 64


def test_a_conversation_is_continued_behind_its_last_message() -> None:
    assert continued("<u>Q</u><a>The answer is</a>\n", "The answer is") == "<u>Q</u><a>The answer is"
    assert continued("<u>yes</u><a>yes </a>", "yes ") == "<u>yes</u><a>yes "
    assert continued("<u>yes</u><a>yes</a>", " yes \n") == "<u>yes</u><a>yes"  # a template that strips
    assert continued("<a>YES</a>", "yes") == "<a>YES</a>"
