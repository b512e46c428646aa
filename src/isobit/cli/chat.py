"""`isobit chat`: talk to a chat model, in a terminal or through pipes."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.cli import media_input, notes, remote, slow_path, text_input
from isobit.cli.parser import path
from isobit.cli.sampling_options import add_model_argument, add_sampling_options, choose, given_options
from isobit.cli.spoken import Spoken, kept_marks
from isobit.errors import CapacityError, IsobitError, UsageError, printable

if TYPE_CHECKING:
    from isobit.cli.remote import RemoteSession
    from isobit.engine.answer import Completion, Piece
    from isobit.engine.generate import Generator
    from isobit.engine.params import SamplingParams
    from isobit.media import Medium
    from isobit.models.media import Kind, MediaPrompt

HELP = """/reset         forget the conversation (the system message stays)
/image FILE    a picture goes with the next message; also /audio, /video
/exit          leave (also Ctrl-D)
/help          this list
Ctrl-C stops an answer."""

ALONE = ("/reset", "/help", "/exit")

BARE = (
    "isobit: note: the chat template adds nothing to the messages, as those of base models do: "
    "the model goes on with your text and does not answer it"
)

EPILOG = """examples:
  isobit chat ./model-int4
  isobit chat ./model-int4 --system "Answer in one sentence." --temperature 0.7
  isobit chat --server http://127.0.0.1:8000
  printf 'What is 2+2?\\nAnd times 3?\\n' | isobit chat ./model-int4

Every line is one message. In the conversation: /image FILE, /audio FILE, /video FILE, /reset, /help, /exit; Ctrl-C
stops an answer.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to a chat model",
        description="Talk to a chat model, quantized or not, with its own chat template.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser, optional=True)
    parser.add_argument(
        "--server",
        metavar="URL",
        help="a server that has the model, as `isobit serve` is one; its key is in the variable ISOBIT_API_KEY",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--template", type=path, metavar="FILE", help="a Jinja chat template instead of the model's")
    parser.add_argument("--no-thinking", action="store_true", help="pass enable_thinking=false to the template")
    media_input.add_media_options(parser, "the first message's text")
    add_sampling_options(parser)
    parser.add_argument("--json", action="store_true", help="print the conversation as one JSON document at the end")
    parser.set_defaults(run=run)
    parser.hint = "what you say is read from the terminal; isobit generate takes a prompt"


def run(args: argparse.Namespace) -> int:
    """Read messages until the end of input, and answer each."""
    given = given_options(args)
    system = None if args.system is None else text_input.argument(args.system, "the system message")
    text_input.standard_input("messages")
    files = media_input.read_all(args)
    if args.server is not None:
        return _converse(args, remote.session(args, system, given), files, {"sampling": given, "notes": []})
    if args.model is None:
        raise UsageError("name a model, or a server that has one with --server URL")
    own = None if args.template is None else text_input.file(args.template, "the chat template")

    media_input.require_taken(args.model, args.revision, files)

    from isobit import api
    from isobit.engine.tokenizer import Tokenizer
    from isobit.models.opening import require_family

    folder = api.find(args.model, revision=args.revision)
    require_family(folder)
    template = own if own is not None else Tokenizer.from_folder(folder).chat_template
    if template is None:
        raise UsageError(
            f"{args.model} has no chat template: it is a base model, trained to go on with a text and not to answer. "
            f'Use `isobit generate {args.model} "PROMPT"`, or give a template with --template FILE'
        )
    options = {"enable_thinking": False} if args.no_thinking else {}
    generator = api.generator(
        folder, dtype=args.dtype, device=args.device, prefix_cache=True, kv_cache=args.kv_cache, memory=args.memory,
        batch_invariant=args.batch_invariant, context=args.context,
    )  # fmt: skip
    notes.show(generator.notes)
    params, shown = choose(given, generator.tokenizer.defaults)
    slow_path.warn(generator.model)
    session = Session(generator, template, system, params, options)
    return _converse(args, session, files, {"sampling": shown, "notes": generator.notes})


def _converse(
    args: argparse.Namespace, session: Session | RemoteSession, files: list[media_input.File], about: dict[str, Any]
) -> int:
    """Talk; the conversation is kept, and printed if it is asked for, however it ends."""
    error: IsobitError | None = None
    try:
        converse(session, files, quiet=args.json)
    except IsobitError as raised:  # what was said until then is kept
        error = raised
    if args.json:
        document = {
            "model": args.model,
            "messages": media_input.shown(session.messages),
            "turns": session.turns,
            **about,
        }
        document |= {"error": error and str(error), "unanswered": session.unanswered}
        json.dump(document, sys.stdout, indent=2)
        print(flush=True)
    if error is not None:
        raise error
    return 0


class Session:
    """A conversation: its messages, and what is needed to answer."""

    def __init__(
        self,
        generator: Generator,
        template: str,
        system: str | None,
        params: SamplingParams,
        template_options: dict[str, Any] | None = None,
    ) -> None:
        self._generator = generator
        self._template = template
        self._params = replace(params, kept_special=kept_marks(template, generator.tokenizer))
        self._options = dict(template_options or {})
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = list(self._first)
        self.turns: list[dict[str, Any]] = []
        self.unanswered: str | None = None  # the message that could not be answered
        self._media: list[Medium] = []  # of all messages, in their order

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._first)
        self.turns, self._media = [], []

    def require(self, kind: Kind) -> None:
        """Raises a UsageError if the model does not take media of a kind."""
        from isobit.models.media import require_taken

        llm = self._generator.llm
        if llm.tower is None:
            raise UsageError(llm.why_no_media)
        require_taken(llm.tower.kinds, [kind])

    def answer(self, text: str, files: Sequence[media_input.File] = (), *, quiet: bool = False) -> None:
        """Answer a message with these media, and print the answer as it comes.

        A message that cannot be answered (template error, context full) leaves the conversation as it was. An answer
        that Ctrl-C stops is kept as far as it came.
        """
        from isobit.engine import chat

        self.unanswered = text
        media = [*self._media, *(file.decoded() for file in files)]
        messages = [*self.messages, {"role": "user", "content": media_input.content(text, files)}]
        tokenizer = self._generator.tokenizer
        if not self.turns and not media:
            prompt = chat.render(self._template, messages, special_tokens=tokenizer.special_tokens, **self._options)
            if adds_nothing(prompt, messages, tokenizer.special_tokens.values()):
                print(BARE, file=sys.stderr)
        asked = self._generator.llm.media_prompt(self._template, messages, media, **self._options)
        spoken = Spoken(self._template)
        completion: Completion | None = None
        pieces = self._pieces(asked)
        try:
            for piece in pieces:
                completion = piece.completion
                shown = spoken.shown(piece)
                if not quiet:
                    print(shown, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", file=sys.stderr)
        if not quiet:
            print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": spoken.said}]
        self._media = media
        self.turns.append(_turn(completion))
        self.unanswered = None

    def _pieces(self, asked: MediaPrompt) -> Iterator[Piece]:
        from isobit.engine.prompts import doubled_bos

        ids = list(asked.ids)
        doubled = None if self.turns else doubled_bos(ids, self._generator.tokenizer, "the chat template writes both")
        notes.show([doubled] if doubled else [])
        try:
            return self._generator.stream(asked if asked.placed else ids, self._params)
        except CapacityError as error:
            if not self.turns:
                raise
            raise CapacityError(f"the conversation does not fit the context any more: {error}") from None


def adds_nothing(prompt: str, messages: Sequence[dict[str, Any]], special: Iterable[str]) -> bool:
    """Whether a rendered conversation is just its texts, special tokens aside: nothing says whose turn it is."""
    for token in special:
        prompt = prompt.replace(token, "")
    return prompt.strip() == "".join(message["content"] for message in messages).strip()


def _turn(completion: Completion | None) -> dict[str, Any]:
    if completion is None:
        return {"finish_reason": "interrupted"}
    return {
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.usage.prompt_tokens,
        "cached_tokens": completion.usage.cached_tokens,
        "completion_tokens": completion.usage.completion_tokens,
        "tokens_per_second": completion.timings.tokens_per_second,
    }


def converse(session: Session | RemoteSession, files: Iterable[media_input.File] = (), *, quiet: bool = False) -> None:
    """Read lines until /exit or the end of input, and answer each; the files go with the first message.

    In a terminal, an error of one message is shown and the conversation goes on; piped input ends with it.

    Raises:
        UsageError: piped input is empty, or no text.
        IsobitError: a piped message cannot be answered.
    """
    stream = text_input.standard_input("messages")
    interactive = stream.isatty()
    if interactive:
        print("Type a message; /help for help.", file=sys.stderr)
    came = interactive
    waiting = list(files)
    for line in _typed() if interactive else text_input.lines(stream, "a message"):
        came = True
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            session.reset()
            print("isobit: the conversation is forgotten", file=sys.stderr)
        elif text == "/help":
            print(HELP, file=sys.stderr)
        elif text:
            try:
                named = _named(line.rstrip(), session)
                if named is not None:
                    waiting.append(named)
                    print(f"isobit: {named.name} goes with the next message", file=sys.stderr)
                    continue
                given, waiting = waiting, []
                session.answer(text, given, quiet=quiet)
            except IsobitError as error:
                if not interactive:
                    raise
                hint = " (/reset starts a new conversation)" if session.turns else ""
                print(f"isobit: error: {printable(error)}{hint}", file=sys.stderr)
    for one in waiting:
        print(f"isobit: note: {printable(one.name)} was not sent: no message came behind it", file=sys.stderr)
    if not came:
        raise UsageError("no message came: standard input is empty or closed")


def _named(line: str, session: Session | RemoteSession) -> media_input.File | None:
    """The file that a command like ``/image FILE`` names; None if the line is a message.

    Raises:
        UsageError: it names none that can be read, or none that the model takes, or there is no such command.
    """
    command, _, rest = line.strip().partition(" ")
    for kind in media_input.KINDS:
        if command == f"/{kind}":
            if not rest.strip():
                raise UsageError(f"/{kind} needs a file, as /{kind} FILE")
            session.require(kind)
            return media_input.read(kind, _meant(arguments.path("the file", rest.strip())))
    if re.fullmatch("/[A-Za-z]+", line.partition(" ")[0]):
        alone = " with words behind it" if command in ALONE else ""
        raise UsageError(
            f"there is no command {printable(command)}{alone}: there are /image FILE, /audio FILE, /video FILE, /reset,"
            " /help and /exit. A message that begins like one needs a space before it"
        )
    return None


def _meant(name: str) -> Path:
    """A path as people write it for a shell: in quotes or not, ~ being home."""
    if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    try:
        return Path(name).expanduser()
    except RuntimeError:  # there is nobody of this name
        return Path(name)


def _typed() -> Iterator[str]:
    """Lines from a terminal. Ctrl-C at an empty prompt leaves, as in other chat programs."""
    while True:
        try:
            yield input("> ")
        except UnicodeDecodeError:
            print("isobit: error: this line is not UTF-8 text", file=sys.stderr)
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
