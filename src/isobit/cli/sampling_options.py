"""The options that `isobit generate` and `isobit chat` share: how tokens are chosen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isobit.engine.sampling import SamplingParams

# option, type, metavar, help. The names are SamplingParams' fields, which says what they mean exactly.
OPTIONS: tuple[tuple[str, Any, str, str], ...] = (
    ("max_tokens", int, "N", "most tokens of the answer (default: 256, or fewer if the context ends before)"),
    ("temperature", float, "T", "0 is greedy, the default; 1 is the model's own distribution"),
    ("top_k", int, "K", "keep the K most probable tokens"),
    ("top_p", float, "P", "keep the most probable tokens that together reach probability P"),
    ("min_p", float, "P", "drop tokens less probable than P times the most probable one"),
    ("repetition_penalty", float, "X", "above 1: discourage tokens of prompt and answer"),
    ("presence_penalty", float, "X", "discourage tokens that are in the answer"),
    ("frequency_penalty", float, "X", "discourage tokens by how often they are in the answer"),
    ("seed", int, "N", "the same seed gives the same answer (default: a fresh one each time)"),
)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL, --revision, --device and --dtype."""
    parser.add_argument("model", metavar="MODEL", help="a local folder, a Hugging Face id, or `bundled`")
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what is computed in (default: float32 on a CPU, as in config.json on a GPU)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what runs it (default: cpu)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The options of OPTIONS, --stop and --ignore-eos."""
    group = parser.add_argument_group("sampling")
    for name, kind, metavar, help in OPTIONS:
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=help)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")
    group.add_argument("--ignore-eos", action="store_true", help="go on after end-of-text tokens")


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The parameters that the options ask for.

    Raises:
        UsageError: a value cannot be used.
    """
    from isobit.engine.sampling import SamplingParams

    given = {name: getattr(args, name) for name, *_ in OPTIONS if getattr(args, name) is not None}
    logprobs = getattr(args, "logprobs", None)
    return SamplingParams(**given, stop=tuple(args.stop), ignore_eos=args.ignore_eos, logprobs=logprobs)
