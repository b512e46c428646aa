"""`isobit transcribe`: what is said in sounds, as text."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, slow_path, text_input
from isobit.cli.sampling_options import add_loading_options, add_sampling_options, choose, given_options
from isobit.errors import UsageError, printable

if TYPE_CHECKING:
    from isobit.engine.transcription import Transcript
    from isobit.media.values import Sound

MODEL = "zai-org/GLM-ASR-Nano-2512"
INPUT = "-"  # standard input

EPILOG = """examples:
  isobit transcribe talk.wav
  isobit transcribe *.mp3 --model ./glm-asr-int8 --json > texts.json
  ffmpeg -i film.mkv -f wav - | isobit transcribe -

Sounds are WAV, FLAC, OGG or MP3. One that is longer than the model hears at once is cut at quiet places, and the texts
of its parts are joined. The model gives no times, so that there are no subtitles.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "transcribe",
        help="write down what is said in sounds",
        description="Write down what is said in sounds, with a model that hears.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="sounds; - for one on standard input")
    parser.add_argument(
        "--model", default=MODEL, metavar="MODEL", help=f"a local folder or a Hugging Face id (default: {MODEL})"
    )
    add_loading_options(parser)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="what is asked of the model, behind the sound (default: its own)"
    )
    parser.add_argument(
        "--window", type=float, metavar="S", help="seconds of a part at most (default: as many as the model hears)"
    )
    add_sampling_options(parser)
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print text as it comes (default), or each sound's at its end",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text (default), or one document")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write down one sound after the other, and print text on stdout."""
    given = given_options(args)
    prompt = None if args.prompt is None else text_input.argument(args.prompt, "the prompt")
    if args.files.count(INPUT) > 1:
        raise UsageError("standard input (-) is one sound: give - once")

    from isobit import api

    _require(args.window)
    # All of them are decoded before the model is loaded, so that what is wrong is said at once; and again, one by one.
    kept = {}
    for name in args.files:
        sound = _read(name)
        if _stays(name, args.files):
            kept[name] = sound
    llm = api.opened(
        args.model, dtype=args.dtype, revision=args.revision, device=args.device, kv_cache=args.kv_cache,
        memory=args.memory, context=args.context, batch_invariant=args.batch_invariant,
    )  # fmt: skip
    notes.show(llm.notes)
    _, shown = choose(given, llm.tokenizer.defaults)
    slow_path.warn(llm.model)
    found: list[tuple[str, Transcript]] = []
    text = args.format == "text"
    for place, name in enumerate(args.files):
        if text and len(args.files) > 1:
            print(("\n" if place else "") + f"==> {printable(name)} <==", flush=True)
        sound = kept.pop(name) if name in kept else _read(name)
        pieces = api.transcribe_in_pieces(llm, sound, prompt=prompt, window=args.window, **given)
        transcript = _written(pieces, stream=text and args.stream)
        if text:
            print("" if args.stream else transcript.text, flush=True)
        notes.show(f"{name}: {note}" for note in transcript.notes)
        found.append((name, transcript))
    if not text:
        _as_json(args.model, found, shown, llm.notes)
    return 0


def _written(pieces: Any, *, stream: bool) -> Transcript:
    for piece in pieces:
        if not isinstance(piece, str):
            return piece  # type: ignore[no-any-return]
        if stream:
            print(piece, end="", flush=True)
    raise AssertionError("a transcription ends with the whole of it")


def _read(name: str) -> Sound:
    from isobit import api

    if name != INPUT:
        return api.read_sound(name)
    stream = text_input.standard_input("the sound")
    if stream.isatty():
        raise UsageError("standard input is a terminal: give a file, or a sound in a pipe")
    return api.read_sound(stream.buffer.read(), "the sound on standard input")


def _stays(name: str, files: list[str]) -> bool:
    """Whether a decoded sound is kept until the model is there: it is the only one, or cannot be read again."""
    return len(files) == 1 or name == INPUT


def _require(window: float | None) -> None:
    if window is not None and not 1 <= window < 1e6:
        raise UsageError(f"--window must be a number of seconds from 1 on, not {window:g}")


def _as_json(model: str, found: list[tuple[str, Transcript]], sampling: dict[str, Any], said: Any) -> None:
    """One document for all sounds."""
    document = {
        "model": model,
        "transcripts": [{"file": name, **asdict(transcript)} for name, transcript in found],
        "sampling": sampling,
        "notes": list(said),
    }
    # Where the terminal cannot show a character, its JSON escape stands for it.
    escaped = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
    json.dump(document, sys.stdout, indent=2, ensure_ascii=escaped)
    print()
