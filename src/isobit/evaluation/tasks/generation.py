"""What the harness says about generating, in the engine's words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isobit.checkpoint.text.ranges import MAX_STOP_STRINGS
from isobit.engine.params import SamplingParams

# The harness's name of a setting -> the engine's.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_KNOWN = {*_NAMES, "until", "max_gen_toks", "do_sample", "seed"}


def sampling(given: Mapping[str, Any], seed: int, context: int) -> tuple[SamplingParams, tuple[str, ...]]:
    """How an answer is generated.

    Args:
        given: settings of a task, with the names that the harness has brought them to.
        seed: of this answer, where it is sampled and the task names none.
        context: tokens that the model reads.

    Returns:
        The same for the engine, and what of it was left out or changed, as sentences.

    Raises:
        UsageError: a value cannot be used; names it.
    """
    left_out = [f"generation setting {name!r} of a task is not applied" for name in given if name not in _KNOWN]
    most = int(given["max_gen_toks"])
    if most >= context:
        left_out.append(f"answers of up to {most} tokens are cut to {context // 2}, half of what the model reads")
        most = context // 2
    stops = tuple(dict.fromkeys(stop for stop in given["until"] if stop))
    settings = {ours: given[theirs] for theirs, ours in _NAMES.items() if given.get(theirs) is not None}
    if not given.get("do_sample"):
        settings["temperature"] = 0.0
    params = SamplingParams(
        **settings,
        seed=int(given.get("seed", seed)),
        stop=stops[:MAX_STOP_STRINGS],  # the text is cut at the others when it is there
        max_tokens=most,
    )
    return params, tuple(left_out)


def continued(rendered: str, last: str) -> str:
    """A conversation up to the end of its last message, which the model is to go on with.

    Args:
        rendered: the whole conversation, without the header of a further turn.
        last: the content of its last message; templates may strip it.
    """
    bare = last.strip()
    begin = rendered.rfind(bare)
    if begin < 0:  # the template rewrites it: there is nothing to cut by
        return rendered
    kept = last.lstrip()  # with the space at its end, where the template keeps it
    return rendered[: begin + len(kept if rendered.startswith(kept, begin) else bare)]
