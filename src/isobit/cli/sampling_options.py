"""The options that `isobit generate` and `isobit chat` share: how tokens are chosen."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from isobit.cli import text_input
from isobit.cli.parser import add_batch_invariant_argument, add_cache_argument, add_memory_argument
from isobit.errors import printable

if TYPE_CHECKING:
    from isobit.checkpoint.text.generation import Defaults
    from isobit.engine.params import SamplingParams

# option, type, metavar, help. The names are SamplingParams' fields, which says what they mean exactly.
OPTIONS: tuple[tuple[str, Any, str, str], ...] = (
    (
        "max_tokens",
        int,
        "N",
        "most tokens of the answer (default: what the model asks for, or 256, as far as the context goes)",
    ),
    (
        "temperature",
        float,
        "T",
        "0 is greedy, the default where the model asks for no sampling; 1 is its own distribution",
    ),
    ("top_k", int, "K", "keep the K most probable tokens"),
    ("top_p", float, "P", "keep the most probable tokens that together reach probability P"),
    ("min_p", float, "P", "drop tokens less probable than P times the most probable one"),
    ("repetition_penalty", float, "X", "above 1: discourage tokens of prompt and answer"),
    ("presence_penalty", float, "X", "discourage tokens that are in the answer"),
    ("frequency_penalty", float, "X", "discourage tokens by how often they are in the answer"),
    ("seed", int, "N", "the same seed gives the same answer (default: a fresh one each time)"),
)


def add_model_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """MODEL, --revision, --dtype, --device, --kv-cache, --batch-invariant, --memory and --context."""
    many: dict[str, Any] = {"nargs": "?"} if optional else {}
    parser.add_argument(
        "model", metavar="MODEL", help="a local folder, a GGUF file, a Hugging Face id, or `bundled`", **many
    )
    add_loading_options(parser)


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """The same without MODEL."""
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what is computed in (default: float32 on a CPU, as in config.json on a GPU)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what runs it (default: cpu)")
    add_cache_argument(parser)
    add_batch_invariant_argument(parser)
    add_memory_argument(parser)
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens of prompt and answer at most (default: what the model reads)"
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The options of OPTIONS, --stop and --ignore-eos."""
    group = parser.add_argument_group(
        "sampling", "Where no option is given, what the model's generation_config.json asks for is used, and shown."
    )
    for name, kind, metavar, help in OPTIONS:
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=help)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")
    group.add_argument("--ignore-eos", action="store_true", help="go on after end-of-text tokens")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that options give, checked, by their names in ``SamplingParams``.

    Raises:
        UsageError: a value cannot be used.
    """
    from isobit.engine.params import SamplingParams

    names = (*(name for name, *_ in OPTIONS), "logprobs")
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if args.stop:
        given["stop"] = tuple(text_input.argument(text, "the text of --stop") for text in args.stop)
    SamplingParams(**given, ignore_eos=args.ignore_eos)
    return given | {"ignore_eos": args.ignore_eos}


def choose(given: dict[str, Any], defaults: Defaults) -> tuple[SamplingParams, dict[str, Any]]:
    """How tokens are chosen: what is given, then what the model asks for, which is said on standard error.

    Args:
        given: of :func:`given_options`.
        defaults: of the model.

    Returns:
        the parameters, and the same for a JSON document: the settings, and which of them come from the model.
    """
    from isobit.engine.params import SamplingParams

    chosen = defaults.choose(given)
    for sentence in chosen.sentences():
        print(f"isobit: {printable(sentence)}", file=sys.stderr)
    params = SamplingParams(**chosen.settings)
    shown = {name: getattr(params, name) for name in (*(name for name, *_ in OPTIONS), "stop", "ignore_eos")}
    return params, shown | {"from_generation_config": sorted(chosen.used)}
