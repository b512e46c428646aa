"""`isobit speak`: a text as speech, in the voice of a recording."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, text_input
from isobit.cli.parser import add_cache_argument, add_memory_argument, path
from isobit.errors import CheckpointWarning, UsageError

if TYPE_CHECKING:
    from isobit.speech.talker import Talker, Voice

EPILOG = """examples:
  isobit speak "Good morning." --model GLM-TTS --voice me.wav --voice-text "This is how I sound." -o morning.wav
  isobit speak --file story.txt --model GLM-TTS --voice me.wav -o story.flac     (me.txt has what me.wav says)
  isobit speak "Now." --model GLM-TTS --voice me.wav -o - | aplay -t raw -f S16_LE -r 24000

The model is a folder of GLM-TTS; `isobit quantize GLM-TTS -s int4 -o GLM-TTS-int4` makes its language model small.
docs/media.md says what is in it, and what of it has been compared with what.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "speak",
        help="speak a text in the voice of a recording",
        description="Speak a text in the voice of a recording (GLM-TTS).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("text", metavar="TEXT", nargs="?", help="what is said (default: standard input)")
    source.add_argument("--file", type=path, metavar="FILE", help="read the text from a file")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a folder of GLM-TTS")
    parser.add_argument(
        "--voice", required=True, type=path, metavar="FILE", help="a recording of half a second to 30 seconds"
    )
    parser.add_argument("--voice-text", metavar="TEXT", help="what it says (default: the .txt of the same name)")
    parser.add_argument(
        "-o", "--out", required=True, metavar="FILE",
        help="to write: .wav, .flac, .mp3, .opus, .pcm; - is PCM of 16 bits on standard output, as it comes",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same sound (default: a fresh one)"
    )
    parser.add_argument(
        "--steps", type=int, default=10, metavar="N", help="of the flow (default: 10; fewer are faster)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="what the language model computes in (default: float32 on a CPU, as in config.json on a GPU)",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what runs it (default: cpu)")
    add_cache_argument(parser)
    add_memory_argument(parser, "the language model and its cache")
    parser.set_defaults(run=run)
    parser.hint = "a text of several words stands in quotes"


def run(args: argparse.Namespace) -> int:
    """Speak, and write the file."""
    from isobit.cli.generate import read_prompt

    said = read_prompt(args.text, args.file)
    streams = args.out == "-"

    from isobit import api, arguments
    from isobit.api import speaking

    folder = speaking.folder_of(args.model)
    arguments.optional_whole("--seed", args.seed, 0, 2**63 - 1)
    arguments.whole("--steps", args.steps, 1, 100)
    from isobit.speech import text, voices, writing

    text.tidied(said)
    form = None
    if not streams:
        out = Path(text_input.argument(args.out, "--out"))
        form = writing.form_of(out)
        writing.require_place(out)
    recording, words = voices.recording(args.voice), _words(args.voice, args.voice_text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # shown below
        talker = api.talker(
            folder, dtype=args.dtype, device=args.device, kv_cache=args.kv_cache, memory=args.memory, steps=args.steps
        )
    notes.show(talker.notes)
    voice = talker.voice(recording, words)
    if form is None:
        return _streamed(talker, said, voice, args.seed)
    import numpy as np

    from isobit.speech.talker import RATE

    samples = np.concatenate([*talker.speak(said, voice, seed=args.seed)])
    writing.write(out, writing.encoded(samples, form))
    if sys.stderr.isatty():
        print(f"[{len(samples) / RATE:.2f} seconds in {out}]", file=sys.stderr)
    return 0


def _words(recording: Path, given: str | None) -> str:
    from isobit.checkpoint.files import is_file
    from isobit.speech import voices

    if given is not None:
        return text_input.argument(given, "--voice-text")
    beside = voices.text_beside(recording)
    if not is_file(beside):
        raise UsageError(f"what {recording.name} says is needed: give --voice-text TEXT, or {beside.name} beside it")
    return voices.said_in(beside)


def _streamed(talker: Talker, said: str, voice: Voice, seed: int | None) -> int:
    from isobit.speech import writing

    for chunk in talker.speak(said, voice, seed=seed, stream=True):
        sys.stdout.buffer.write(writing.pcm(chunk))
        sys.stdout.buffer.flush()
    return 0
