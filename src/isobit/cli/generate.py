"""`isobit generate`: complete a prompt."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli import media_input, notes, slow_path, text_input
from isobit.cli.parser import path
from isobit.cli.sampling_options import add_model_argument, add_sampling_options, choose, given_options
from isobit.errors import UsageError

if TYPE_CHECKING:
    from isobit.engine.answer import Completion
    from isobit.engine.generate import Generator
    from isobit.engine.grammar import Grammar
    from isobit.engine.params import SamplingParams, TokenLogprob
    from isobit.engine.tokenizer import Tokenizer
    from isobit.media import Medium
    from isobit.models.media import MediaPrompt

_BEGIN = 1024  # characters that hold the first two tokens, however long the prompt is

EPILOG = """examples:
  isobit generate bundled "def fib(n):" --max-tokens 64
  isobit generate ./model-int4 --file prompt.txt --temperature 0.7 --top-p 0.9 --seed 1
  echo "import os" | isobit generate bundled --json
  isobit generate bundled "config = " --json-schema schema.json
  isobit generate ./a-model-that-sees "What is on the screen?" --image screen.png

The prompt is completed as it is. To talk to a chat model, use `isobit chat`. With a picture, a sound or a video the
prompt is the text of a message in the model's chat template: models know media in messages alone.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "generate",
        help="complete a prompt",
        description="Complete a prompt with a checkpoint, quantized or not.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to complete (default: standard input)")
    source.add_argument("--file", type=path, metavar="FILE", help="read the prompt from a file")
    media_input.add_media_options(parser, "the prompt")
    add_sampling_options(parser)
    parser.add_argument("--logprobs", type=int, metavar="N", help="give log-probabilities of each token and the N best")
    add_grammar_options(parser)
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print text as it comes (default), or all at the end",
    )
    parser.add_argument("--echo", action="store_true", help="print the prompt before the answer")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.set_defaults(run=run)
    parser.hint = "a prompt of several words stands in quotes: isobit generate MODEL 'The capital of'"


def add_grammar_options(parser: argparse.ArgumentParser) -> None:
    """--json-schema, --regex and --grammar: which answers are right."""
    group = parser.add_argument_group(
        "grammar", "The answer is right by one of these; what cannot be enforced is refused. It ends where it is whole."
    ).add_mutually_exclusive_group()
    group.add_argument("--json-schema", type=path, metavar="FILE", help="JSON that this JSON Schema allows")
    group.add_argument("--regex", metavar="PATTERN", help="what this regular expression matches as a whole")
    group.add_argument("--grammar", type=path, metavar="FILE", help="a text of this grammar, in Lark's syntax or GBNF")


def grammar_of(args: argparse.Namespace) -> Grammar | None:
    """The grammar that the options give, if any.

    Raises:
        UsageError: it cannot be read or used.
    """
    from isobit.engine.grammar import Grammar

    if args.json_schema is not None:
        return Grammar.json_schema(text_input.file(args.json_schema, "the JSON schema"))
    if args.regex is not None:
        return Grammar.regex(text_input.argument(args.regex, "the regular expression"))
    if args.grammar is not None:
        return Grammar.grammar(text_input.file(args.grammar, "the grammar"))
    return None


def run(args: argparse.Namespace) -> int:
    """Complete, and print text on stdout; the timing goes to stderr when that is a terminal."""
    prompt = read_prompt(args.prompt, args.file)
    given = given_options(args)
    grammar = grammar_of(args)
    files = media_input.read_all(args)
    media = [file.decoded() for file in files]  # what is wrong with them is told before weights are read

    media_input.require_taken(args.model, args.revision, files)

    from isobit import api
    from isobit.engine.prompts import doubled_bos

    generator = api.generator(
        args.model,
        dtype=args.dtype,
        revision=args.revision,
        device=args.device,
        kv_cache=args.kv_cache,
        memory=args.memory,
        context=args.context,
        batch_invariant=args.batch_invariant,
    )
    asked: str | MediaPrompt = prompt
    found = list(generator.notes)
    if media:
        asked = with_media(generator, prompt, files, media)
        found.append("the prompt is a message of the model's chat template: there are media in it")
    elif doubled := doubled_bos(generator.tokenizer.encode(prompt[:_BEGIN]), generator.tokenizer):
        found.append(doubled)
    notes.show(found)
    params, shown = choose(given, generator.tokenizer.defaults)
    slow_path.warn(generator.model)
    if args.json:
        completion = generator.generate(asked, params, grammar)
        document = as_json(args.model, prompt, completion, generator.tokenizer)
        if media:
            document["media"] = [{"kind": file.kind, "file": str(file.path)} for file in files]
        # Where the terminal cannot show a character, its JSON escape stands for it.
        escaped = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
        json.dump(document | {"sampling": shown, "notes": found}, sys.stdout, indent=2, ensure_ascii=escaped)
        print()
        return 0
    completion = print_answer(
        generator, asked, params, stream=args.stream, echo=prompt if args.echo else None, grammar=grammar
    )
    if grammar is not None and not (completion.finish_reason == "stop" and not isinstance(completion.stop, str)):
        notes.show((f"the answer ended before it was whole ({completion.finish_reason}): give it more --max-tokens",))
    if completion.logprobs is not None:
        print(logprob_lines(completion.logprobs, generator.tokenizer))
    if sys.stderr.isatty():
        print(summary(completion), file=sys.stderr)
    return 0


def with_media(
    generator: Generator, prompt: str, files: Sequence[media_input.File], media: Sequence[Medium]
) -> MediaPrompt:
    """The prompt as a message with media before its text.

    Raises:
        UsageError: the model has no chat template, or does not take them.
    """
    template = generator.tokenizer.chat_template
    if template is None:
        raise UsageError("this model has no chat template, without which no prompt can have a picture or a sound in it")
    message = {"role": "user", "content": media_input.content(prompt, files)}
    return generator.llm.media_prompt(template, [message], media)


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt from the argument, the file or standard input.

    Raises:
        UsageError: there is none, or it cannot be read as text.
    """
    if text is not None:
        return text_input.argument(text, "the prompt")
    if file is not None:
        return text_input.file(file, "the prompt")
    stream = text_input.standard_input("the prompt")
    if stream.isatty():
        raise UsageError("no prompt: give it as an argument, with --file FILE, or on standard input")
    return text_input.whole(stream, "the prompt")


def print_answer(
    generator: Generator,
    prompt: str | MediaPrompt,
    params: SamplingParams,
    *,
    stream: bool = True,
    echo: str | None = None,
    grammar: Grammar | None = None,
) -> Completion:
    """Generate and print the answer's text and a line end; ``echo`` is printed before it."""
    if echo is not None:
        print(echo, end="", flush=True)
    completion = None
    for piece in generator.stream(prompt, params, grammar):
        completion = piece.completion
        if stream:
            print(piece.text, end="", flush=True)
    assert completion is not None
    print("" if stream else completion.text)
    return completion


def summary(completion: Completion) -> str:
    """One line: tokens, speed, why it ended."""
    timings, usage = completion.timings, completion.usage
    speed = "" if timings.tokens_per_second is None else f", {timings.tokens_per_second:.1f} tokens/s"
    return (
        f"[{usage.prompt_tokens} prompt tokens in {timings.prefill_seconds:.2f} s, {usage.completion_tokens} tokens "
        f"in {timings.decode_seconds:.2f} s{speed}; {completion.finish_reason}]"
    )


def logprob_lines(logprobs: tuple[TokenLogprob, ...], tokenizer: Tokenizer) -> str:
    """A table: each token, its log-probability, and the most probable tokens in its place."""
    rows = []
    for entry in logprobs:
        best = "  ".join(f"{tokenizer.token_text(id)!r} {value:.3f}" for id, value in entry.top)
        rows.append(f"{tokenizer.token_text(entry.id)!r:>20} {entry.logprob:8.3f}   {best}".rstrip())
    return "\n".join(rows)


def as_json(model: str, prompt: str, completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """The JSON document of a completion. JSON has no infinity: a log-probability of -inf is null."""
    document: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "stop": completion.stop,
        "usage": {
            "prompt_tokens": completion.usage.prompt_tokens,
            "completion_tokens": completion.usage.completion_tokens,
        },
        "timings": {
            "prefill_seconds": completion.timings.prefill_seconds,
            "decode_seconds": completion.timings.decode_seconds,
            "tokens_per_second": completion.timings.tokens_per_second,
        },
    }
    if completion.logprobs is not None:
        document["logprobs"] = [
            {
                **_token(entry.id, entry.logprob, tokenizer),
                "top": [_token(id, value, tokenizer) for id, value in entry.top],
            }
            for entry in completion.logprobs
        ]
    return document


def _token(id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    finite = None if logprob == float("-inf") else logprob
    return {"id": id, "text": tokenizer.token_text(id), "logprob": finite}
