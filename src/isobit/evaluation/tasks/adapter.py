"""A model behind isobit's engine as a model class of lm-evaluation-harness.

The harness asks for three things: the log-probability of a continuation of a context, and whether it is what greedy
decoding gives; that of a whole text; and texts generated until one of some strings. Everything is sent to the engine at
once, ordered by its tokens, so that contexts that begin alike stand beside each other and are computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from isobit.engine.chat import render
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.errors import UsageError
from isobit.evaluation.tasks.generation import continued, sampling
from isobit.evaluation.tasks.rules import BosRule, cut
from isobit.evaluation.tasks.scores import score

DEFAULT_MAX_TOKENS = 256  # of an answer, where the task does not say
_AT_ONCE = 256  # prompts that are handed to the engine together


class IsobitLM(TemplateLM):
    """A loaded model for the harness.

    Args:
        llm: the model.
        name: what to call it.
        add_bos: whether contexts begin with begin-of-text; None for what the tokenizer does by itself.
        max_length: tokens that the model reads at most; None for its context.
        seed: of answers that are sampled; each has its own, made of this one and its number.
        quiet: no progress.

    Attributes:
        rule: where begin-of-text stands.
        seen: what happened that figures depend on -> how often (texts cut, settings left out).
    """

    def __init__(
        self,
        llm: LLM,
        name: str = "isobit",
        *,
        add_bos: bool | None = None,
        max_length: int | None = None,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        longest = llm.context_length
        if max_length is not None and not 2 <= max_length <= longest:
            raise UsageError(f"a context of {max_length} tokens is not between 2 and what the model reads: {longest}")
        self.llm, self.name, self.seed, self.quiet = llm, name, seed, quiet
        self.max_length = longest if max_length is None else max_length
        self._read = min(self.max_length, longest - 1)  # the engine scores no token behind the end of the context
        self.rule = BosRule.of(llm.tokenizer, add_bos)
        self.seen: Counter[str] = Counter()
        self._template: str | None = None  # of conversations, once one was asked for

    # Tokens

    @property
    def reads(self) -> int:
        """Tokens that are in front of a scored one at most."""
        return self._read

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return min(self.llm.tokenizer.eos_ids, default=self.rule.prefix)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        return self.rule.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, by :class:`BosRule`."""
        return self.rule.encode(self.llm.tokenizer, string, add_special_tokens)

    # Conversations

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps prepared requests under."""
        return self.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of that name, or the usual one; None where none is asked for.

        Raises:
            UsageError: the model has no such template.
        """
        if chat_template is False or chat_template is None:
            return None
        found = self.llm.tokenizer.chat_templates
        wanted = "default" if chat_template is True else chat_template
        if wanted not in found:
            has = f"it has {', '.join(sorted(found))}" if found else "it has none: leave --apply-chat-template out"
            raise UsageError(f"{self.name} has no chat template {wanted!r}; {has}")
        self._template = found[wanted]
        return self._template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model reads it; its last message is to be continued where no prompt is added."""
        template = self._template or self.chat_template(True)
        assert template is not None
        text = render(
            template,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.llm.tokenizer.special_tokens,
        )
        return text if add_generation_prompt else continued(text, chat_history[-1]["content"])

    # What is asked

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding gives it) of every continuation, in the order they came."""
        cuts = [cut(context or [self.prefix_token_id], tail, self._read) for _, context, tail in requests]
        lost = sum(one.lost > 0 for one in cuts)
        if lost:
            self.seen[f"texts cut on the left to the {self._read} tokens that are read"] += lost
        with tqdm(total=len(cuts), desc="scoring", disable=disable_tqdm or self.quiet) as bar:
            sequences, places = [one.ids for one in cuts], [one.first_scored for one in cuts]
            found = score(self.llm, sequences, places, progress=bar.update)
        for (key, _, _), answer in zip(requests, found, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token scored once with as much context as fits."""
        texts = [request.args[0] for request in requests]
        windows = [self._windows(text) for text in texts]
        flat = [(None, *window) for each in windows for window in each]
        scores = iter(self._loglikelihood_tokens(flat, disable_tqdm))
        found = [sum(next(scores)[0] for _ in each) for each in windows]
        for text, value in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return found

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(context, tokens to score) of the windows of a text; the first has the prefix token alone as its context."""
        ids = self.tok_encode(text, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:  # the text is written with it
            ids = ids[1:]
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self._read, 1)
        return [make_disjoint_window(window) for window in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that go on from contexts, each until one of its strings, or its longest."""
        prompts, params, stops = [], [], []
        for number, request in enumerate(requests):
            context, given = request.args
            asked = normalize_gen_kwargs(given, DEFAULT_MAX_TOKENS)
            one, left_out = sampling(dict(asked), self.seed + number, self.max_length)
            for reason in left_out:
                self.seen[reason] += 1
            prompts.append(self._prompt(context, one.max_tokens or 1))
            params.append(one)
            stops.append(asked["until"])
        texts = self._generated(prompts, params, disable_tqdm or self.quiet)
        answers = [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def _prompt(self, context: str, answer: int) -> list[int]:
        """A context's last tokens, as many as leave room for the answer."""
        ids = self.tok_encode(context) or [self.prefix_token_id]
        room = self.max_length - answer
        if len(ids) > room:
            self.seen[f"contexts cut on the left, to leave room for {answer} tokens"] += 1
        return ids[-room:]

    def _generated(self, prompts: list[list[int]], params: list[SamplingParams], quiet: bool) -> list[str]:
        """The answers, in the order of the prompts; the engine works on those that begin alike together."""
        order = sorted(range(len(prompts)), key=prompts.__getitem__)
        texts = [""] * len(prompts)
        with tqdm(total=len(prompts), desc="answering", disable=quiet) as bar:
            for begin in range(0, len(order), _AT_ONCE):
                places = order[begin : begin + _AT_ONCE]
                done = self.llm.generate([prompts[p] for p in places], [params[p] for p in places])
                for place, one in zip(places, done, strict=True):
                    texts[place] = one.text
                bar.update(len(places))
        return texts
