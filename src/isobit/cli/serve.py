"""`isobit serve`: a model over HTTP, as OpenAI's clients ask for it."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, slow_path, text_input
from isobit.cli.parser import SIZES, byte_size, path
from isobit.cli.sampling_options import add_model_argument
from isobit.errors import CapacityError, CheckpointWarning, Unsupported, UsageError, printable

if TYPE_CHECKING:
    from isobit.engine.llm import LLM
    from isobit.media import Limits
    from isobit.server.settings import Settings

KEY = "ISOBIT_API_KEY"
NEEDED = ("llguidance", "msgspec", "prometheus_client", "python_multipart", "starlette", "uvicorn")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LEAST_BODY, _AROUND = 32 << 20, 1 << 20  # bytes of a request, and of what is in it beside one file
EPILOG = f"""examples:
  isobit serve bundled
  isobit serve ./model-int4 --port 9000 --cache-tokens 65536
  {KEY}=secret isobit serve ./model-fp8 --device cuda --host 0.0.0.0

  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
       -d '{{"prompt": "def fib(n):", "max_tokens": 40}}'

Keys: --api-key, --api-key-file (one a line) or the variable {KEY}; with none, everybody on this machine may ask.
docs/serving.md has the routes, clients, a systemd unit and a Dockerfile.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over HTTP (OpenAI's routes)",
        description="Serve a model over HTTP: chats and completions as OpenAI's clients ask for them. Prints what will "
        "happen on this machine first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser)
    parser.add_argument("--name", action="append", default=[], help="of the model, for clients; repeatable")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    access = parser.add_argument_group("who may ask")
    access.add_argument("--api-key", action="append", default=[], metavar="KEY", help="a key; repeatable")
    access.add_argument("--api-key-file", type=path, metavar="FILE", help="keys, one a line")
    access.add_argument("--insecure", action="store_true", help="listen to other machines without any key")
    access.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name to be called by")
    access.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a web page elsewhere")
    size = parser.add_argument_group("how much")
    size.add_argument("--sequences", type=int, default=64, metavar="N", help="answers at once (default: 64)")
    size.add_argument(
        "--cache-tokens", type=int, metavar="N",
        help="tokens of the key-value cache (default: grows; on a GPU up to half of the free memory at once)",
    )  # fmt: skip
    size.add_argument("--no-prefix-cache", action="store_true", help="compute every prompt from its beginning")
    size.add_argument("--max-waiting", type=int, default=1024, metavar="N", help="answers that wait (default: 1024)")
    size.add_argument(
        "--max-body", type=byte_size, metavar="SIZE",
        help="of a request, e.g. 64MiB (default: what a file of --media-bytes takes in it, and 32 MiB at least); "
        f"{SIZES}",
    )  # fmt: skip
    size.add_argument("--drain", type=float, default=30.0, metavar="SECONDS", help="for answers when it ends (30)")
    parser.add_argument(
        "--voices", type=path, metavar="FOLDER",
        help="of a pipeline of speech: recordings, each with a .txt of what it says (docs/media.md)",
    )  # fmt: skip
    add_media_options(parser)
    parser.set_defaults(run=run)


def add_media_options(parser: argparse.ArgumentParser) -> None:
    """--media-...: what pictures, videos and sounds may cost. Defaults are those of isobit.media.Limits."""
    group = parser.add_argument_group(
        "pictures, videos and sounds", "What they may cost; docs/media.md has the formats."
    )
    group.add_argument(
        "--media-bytes", type=byte_size, metavar="SIZE", help=f"of one file, e.g. 64MiB (default: 32MiB); {SIZES}"
    )
    group.add_argument(
        "--media-pixels", type=int, metavar="N", help="of one picture, or all frames of a video (default: 67,108,864)"
    )
    group.add_argument("--media-frames", type=int, metavar="N", help="of one video (default: 512)")
    group.add_argument("--media-seconds", type=float, metavar="S", help="of one video or sound (default: 600)")
    group.add_argument(
        "--allow-remote-media",
        action="store_true",
        help="fetch them from public http and https addresses that requests name (default: only data: URLs)",
    )
    group.add_argument("--media-count", type=int, metavar="N", help="of them in one request (default: 32)")


def media_limits(args: argparse.Namespace) -> Limits:
    """What the options say.

    Raises:
        UsageError: a value cannot be used.
    """
    from isobit.media import Limits

    names = {field.name: getattr(args, f"media_{field.name}") for field in fields(Limits)}
    try:
        return Limits(**{name: value for name, value in names.items() if value is not None})
    except UsageError as error:
        raise UsageError(f"--media-{error}") from None


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    require_extra()
    settings = read_settings(args)

    from isobit import api
    from isobit.api import speaking
    from isobit.server import run as running

    if args.voices is not None or speaking.is_pipeline(args.model):
        return _serve_speech(args, settings)
    with running.listener(args.host, args.port) as sock:
        kv = None if args.kv_cache == "auto" else args.kv_cache
        folder = api.find(args.model, revision=args.revision, weights=False)
        about = running.planned(
            folder, args.device, kv, args.memory, args.context, args.cache_tokens, args.sequences
        )  # fmt: skip
        print("\n".join(about.pop("text")), file=sys.stderr, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # its notes are shown below
            llm = api.LLM(
                args.model,
                dtype=args.dtype,
                revision=args.revision,
                device=args.device,
                sequences=args.sequences,
                cache_tokens=args.cache_tokens,
                prefix_cache=not args.no_prefix_cache,
                kv_cache=args.kv_cache,
                memory=args.memory,
                context=args.context,
                batch_invariant=args.batch_invariant,
            )
        llm.notes += _shortened(llm)
        _prepare(llm, args)
        notes.show((*llm.notes, *_unreachable(args, settings)))
        slow_path.warn(llm.model)
        about |= running.described(api.find(args.model, revision=args.revision))
        return running.serve(llm, settings, about, sock)


def _serve_speech(args: argparse.Namespace, settings: Settings) -> int:
    """Serve a pipeline of speech: ``/v1/audio/speech`` alone."""
    from isobit import api
    from isobit.api import speaking
    from isobit.server import run as running
    from isobit.server.speaking import Speaking
    from isobit.speech import voices

    if args.voices is None:
        raise UsageError("a pipeline of speech needs --voices FOLDER: recordings, each with a .txt of what it says")
    folder, recordings = speaking.folder_of(args.model), voices.voices_in(args.voices)
    kv = None if args.kv_cache == "auto" else args.kv_cache
    model = folder / "llm"
    with running.listener(args.host, args.port) as sock:
        about = running.planned(model, args.device, kv, args.memory, args.context, None, args.sequences)
        print("\n".join(about.pop("text")), file=sys.stderr, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # its notes are shown below
            talker = api.talker(
                folder, dtype=args.dtype, device=args.device, kv_cache=args.kv_cache, memory=args.memory,
                sequences=args.sequences,
            )  # fmt: skip
        _prepare(talker.llm, args)
        notes.show(talker.notes)
        about |= running.described(model)
        return running.serve(talker.llm, settings, about, sock, Speaking(talker, recordings))


def _prepare(llm: LLM, args: argparse.Namespace) -> None:
    """Records the steps of a GPU before the first request; where there is no memory for that, each when it comes.

    What is there by now stays: it is not looked through for garbage again, which stops all answers for 0.1 s and more.

    Raises:
        CapacityError: memory lacks for a cache that was asked for.
    """
    try:
        llm.prepare()
    except CapacityError as error:
        if args.memory is not None or args.cache_tokens is not None:
            raise
        told = f"the first requests take longer, for their steps could not be recorded before them: {error}"
        print(told, file=sys.stderr, flush=True)
    gc.collect()
    gc.freeze()


def _shortened(llm: LLM) -> tuple[str, ...]:
    """What is said where the cache holds less than one answer of the model's context."""
    longest = llm.engine.longest
    if longest is None or longest >= llm.context_length:
        return ()
    return (f"prompt and answer have {longest} tokens at most, not {llm.context_length}: the cache holds no more",)


def _as_text(size: int) -> int:
    """Bytes of a request with a file of some size: base64 has four for three, and there is something around it."""
    return -(-size // 3) * 4 + _AROUND


def _unreachable(args: argparse.Namespace, settings: Settings) -> tuple[str, ...]:
    """What is said where a file may be larger than the request that it comes in."""
    fits = (settings.limits.body - _AROUND) // 4 * 3
    if args.max_body is None or args.media_bytes is None or args.media_bytes <= fits:
        return ()
    return (
        f"--max-body {args.max_body}: a request has room for a file of {max(0, fits):,} bytes, whatever --media-bytes"
        " says; uploaded recordings and files that are fetched may be larger",
    )


def require_extra() -> None:
    """Raises Unsupported if what the server is made of is not installed."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Unsupported(
            "isobit serve", [f"{name} is not installed" for name in missing], "pip install 'isobit[serve]'"
        )


def read_settings(args: argparse.Namespace) -> Settings:
    """What the options say.

    Raises:
        UsageError: a value cannot be used, or other machines could ask without a key.
    """
    from isobit import api, arguments
    from isobit.server import settings

    arguments.whole("--port", args.port, 0, 65535)
    arguments.whole("--sequences", args.sequences, 1, api.MOST_SEQUENCES)
    arguments.whole("--max-waiting", args.max_waiting, 0, 1_000_000)
    arguments.optional_whole("--max-body", args.max_body, 1024, 1 << 40)
    if not 0 <= args.drain <= 86400:
        raise UsageError(f"--drain must be between 0 and 86400 seconds, not {args.drain:g}")
    keys = read_keys(args.api_key, args.api_key_file)
    if args.host not in LOOPBACK and not keys and not args.insecure:
        raise UsageError(
            f"--host {args.host} lets other machines ask, and there is no key: give one (--api-key-file, or the "
            f"variable {KEY}), or insist with --insecure"
        )
    own = {"localhost", "127.0.0.1", "::1", args.host.lower(), *(name.lower() for name in args.allow_host)}
    anybody = (bool(keys) or args.insecure) and not args.allow_host and args.host not in LOOPBACK
    media = media_limits(args)
    return settings.Settings(
        names=tuple(args.name) or (api.default_name(args.model),),
        keys=keys,
        hosts=None if anybody else frozenset(own),
        origins=frozenset(args.allow_origin),
        limits=settings.Limits(waiting=args.max_waiting, body=args.max_body or max(_LEAST_BODY, _as_text(media.bytes))),
        media=media,
        remote=args.allow_remote_media,
        drain=args.drain,
    )


def read_keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """The keys of options, file and variable.

    Raises:
        UsageError: one is empty or has characters that no header can have, or the file has none.
    """
    found = [*given]
    if file is not None:
        lines = [line.strip() for line in text_input.file(file, "the keys").splitlines()]
        kept = [line for line in lines if line and not line.startswith("#")]
        if not kept:
            raise UsageError(f"--api-key-file {printable(file)} has no key in it")
        found += kept
    if KEY in os.environ:
        found.append(os.environ[KEY])
    for key in found:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError("a key must have at least one character, all of them ASCII and none a space")
    return tuple(found)
