"""generation_config.json: how the makers of a model want its tokens chosen, and what isobit does of it.

Every key is honoured, without effect on the text, or said: nothing that changes the text is dropped silently. As in
transformers, ``temperature``, ``top_k``, ``top_p`` and ``min_p`` count only where ``do_sample`` is true, which also
brings ``top_k`` 50; the repetition penalty counts always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.text.ranges import MAX_STOP_STRINGS, problem
from isobit.checkpoint.text.tokens import optional_json
from isobit.errors import CheckpointError

NAME = "generation_config.json"
_SAMPLED = ("temperature", "top_k", "top_p", "min_p")
_TOP_K = 50  # of transformers, where do_sample is true and the file has none
_OFF = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}

# Keys that change the text and that isobit does not have -> values that change nothing.
_UNUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "num_return_sequences": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
# Keys that cannot change the text of one answer by one sequence.
_INERT = frozenset(
    """bos_token_id pad_token_id eos_token_id decoder_start_token_id transformers_version _from_model_config
    early_stopping length_penalty low_memory use_cache use_mtp cache_implementation cache_config max_cache_len
    prefill_chunk_size renormalize_logits remove_invalid_values output_attentions output_hidden_states output_scores
    output_logits return_dict_in_generate is_assistant num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit
    assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type compile_config disable_compile
    continuous_batching_config _commit_hash _name_or_path architectures model_type trust_remote_code""".split()
)


@dataclass(frozen=True)
class Defaults:
    """What a model's generation_config.json asks for.

    Attributes:
        sampled: whether tokens are drawn (``do_sample``); else the most probable one is taken.
        values: the settings that isobit has, by their names here.
        stop: texts that end an answer.
        max_tokens: most tokens of an answer, as far as the context goes (``max_new_tokens``).
        max_length: most tokens of prompt and answer together, where nothing says how long the answer may be.
        eos_ids: ids that end an answer.
        notes: what the file asks for and does not get, as sentences.
    """

    sampled: bool = False
    values: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    max_length: int | None = None
    eos_ids: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def choose(self, given: Mapping[str, Any]) -> Chosen:
        """The settings of a request: what is given wins, then the file, then greedy decoding.

        Args:
            given: settings by their names in :class:`isobit.engine.params.SamplingParams`.
        """
        temperature = given.get("temperature", self.values.get("temperature", 1.0) if self.sampled else 0.0)
        own = {name: value for name, value in self.values.items() if name not in _SAMPLED or temperature > 0}
        if temperature > 0:
            own["temperature"] = temperature
            if self.sampled:
                own.setdefault("top_k", _TOP_K)
        used: dict[str, Any] = {
            name: own[name] for name in _OFF if name in own and name not in given and own[name] != _OFF[name]
        }
        if self.stop and not given.get("stop"):
            used["stop"] = self.stop
        length = {"max_tokens": self.max_tokens} if self.max_tokens is not None else {"max_length": self.max_length}
        if "max_tokens" in given or None in length.values():
            length = {}
        idle = {name: value for name, value in self.values.items() if name in _SAMPLED and value != _OFF[name]}
        return Chosen({**given, **used}, used | length, idle if not self.sampled and "temperature" not in given else {})


@dataclass(frozen=True)
class Chosen:
    """The settings of a request.

    Attributes:
        settings: all of them but those of length, which hold as far as the context goes.
        used: those that generation_config.json gave.
        idle: those it gives for drawing tokens, without asking for it.
    """

    settings: Mapping[str, Any]
    used: Mapping[str, Any]
    idle: Mapping[str, Any]

    def sentences(self) -> list[str]:
        """What to tell the person, if there is anything to tell."""
        found = []
        if self.used:
            drawn = "temperature" in self.used
            found.append(f"sampling: {_listing(self.used)} ({NAME}{'; --temperature 0 is greedy' if drawn else ''})")
        if self.idle:
            found.append(
                f"{NAME} gives {_listing(self.idle)} but not do_sample: true, so the most probable token is taken, "
                "as in transformers; --temperature draws"
            )
        return found


def _listing(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {list(value) if name == 'stop' else format(value, 'g')}" for name, value in settings.items()
    )


def read_defaults(folder: Path) -> Defaults:
    """What generation_config.json asks for; nothing if there is no such file.

    Raises:
        CheckpointError: the file is damaged, or a setting has an impossible value; names the key.
    """
    path = folder / NAME
    config = {key: value for key, value in optional_json(path).items() if value is not None}
    sampled = config.get("do_sample", False)
    if not isinstance(sampled, bool):
        raise CheckpointError(f"do_sample must be true or false, not {short(sampled)}", file=path)
    values = {name: _value(path, name, config[name]) for name in _OFF if name in config}
    return Defaults(
        sampled,
        values,
        _stop(path, config),
        _count(path, config, "max_new_tokens"),
        _count(path, config, "max_length"),
        eos_ids(path, config),
        tuple(_notes(config)),
    )


def eos_ids(path: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """The ids of ``eos_token_id``: one, a list or none.

    Raises:
        CheckpointError: it is something else.
    """
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise CheckpointError(f"eos_token_id must be an integer or a list of integers, not {short(value)}", file=path)
    return frozenset(ids)


def _value(path: Path, name: str, value: Any) -> float:
    """A setting as isobit has it; other tools' spellings of "none" are understood."""
    if name == "top_k" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if name == "top_k" and value == -1 and not isinstance(value, bool):
        value = 0
    if name == "top_p" and value == 0 and not isinstance(value, bool):
        value = 5e-324  # the most probable token alone
    reason = problem(name, value)
    if reason:
        raise CheckpointError(reason, file=path)
    return value  # type: ignore[no-any-return]


def _count(path: Path, config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is not None and (reason := problem("max_tokens", value)):
        raise CheckpointError(reason.replace("max_tokens", key), file=path)
    return value


def _stop(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    value = config.get("stop_strings", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_STOP_STRINGS or not all(isinstance(t, str) and t for t in texts):
        raise CheckpointError(
            f"stop_strings must be up to {MAX_STOP_STRINGS} texts that are not empty, not {short(value)}", file=path
        )
    return tuple(texts)


def _notes(config: Mapping[str, Any]) -> list[str]:
    """What the file asks for and does not get."""
    honoured = {*_OFF, "do_sample", "max_new_tokens", "stop_strings", "max_length"}
    unused = {key: config[key] for key, neutral in _UNUSED.items() if key in config and config[key] not in neutral}
    found = []
    if unused:
        listed = ", ".join(f"{key} {short(value)}" for key, value in unused.items())
        found.append(f"isobit does not have what {NAME} asks for, so answers differ from transformers': {listed}")
    strange = [short(key) for key in config if key not in honoured and key not in _UNUSED and key not in _INERT]
    if strange:
        more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
        found.append(f"keys of {NAME} that isobit does not know, not used: {', '.join(strange[:8])}{more}")
    return found
