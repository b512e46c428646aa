"""Commands in hostile surroundings: streams in any state, signals at any moment, names and numbers that nobody expects.

Streams and signals are those of real processes, few of them, for each takes a second; the rest goes through `main` in
this one. What is asked for everywhere: a status that says what happened, one clear line, no traceback, and nothing that
acts on a terminal.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from isobit.cli import failures, signals, text_input
from isobit.cli import main as command
from isobit.cli.main import main
from isobit.errors import LONGEST_MESSAGE

ISOBIT = f"{sys.executable} -m isobit"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("models") / "source")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT | environment, errors="replace"
    )


def one_line(text: str, *words: str) -> None:
    assert "Traceback" not in text and "Exception ignored" not in text
    assert text.startswith("isobit: ") and text.count("\n") == 1
    for word in words:
        assert word in text


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize("rest", ["--help", "plan bundled --json --target sm_86"])
def test_a_full_disk_behind_standard_output_is_an_error(rest: str) -> None:
    done = shell(f"{ISOBIT} {rest} > /dev/full")
    assert done.returncode == 2
    one_line(done.stderr, "standard output cannot be written: No space left on device")


@pytest.mark.parametrize("rest", ["--version", "quantize bundled -s int8 -o never"])
def test_a_closed_standard_output_is_an_error_before_any_work(rest: str, tmp_path: Path) -> None:
    done = shell(f"cd {tmp_path}; {ISOBIT} {rest} >&-", PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 2
    one_line(done.stderr, "standard output is closed")
    assert not list(tmp_path.iterdir())


def test_whoever_stops_reading_gets_no_complaint() -> None:
    done = shell(f"set -o pipefail; {ISOBIT} plan bundled --json --target all | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_closed_standard_input_and_error_change_nothing_else(source: Path) -> None:
    done = shell(f"{ISOBIT} plan {source} --json --target sm_86 <&- 2>&-")
    assert done.returncode == 0 and json.loads(done.stdout)["model"]["parameters"] > 0
    done = shell(f"{ISOBIT} plan nowhere <&- 2>&-; echo $?; {ISOBIT} plan nowhere 2>/dev/full; echo $?")
    assert done.stdout == "2\n2\n"


def test_letters_that_an_encoding_lacks_become_escapes(source: Path) -> None:
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = shell(f"{ISOBIT} generate {source} 'gr\u00fc\u00df \U0001f600' --max-tokens 2 --json", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == "gr\u00fc\u00df \U0001f600" and done.stdout.isascii()
    done = shell(f"{ISOBIT} plan $'n\\xf6where\\x1b[31m'", **environment)
    assert done.returncode == 2
    one_line(done.stderr, "where\\x1b[31m")


def test_a_pipe_that_does_not_block_gets_everything(source: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen(
        [sys.executable, "-m", "isobit", "quantize", "--help"], stdout=write, env=ENVIRONMENT
    ) as process:
        os.close(write)
        time.sleep(0.5)
        with open(read, encoding="utf-8") as stream:
            assert "byte for byte" in stream.read()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("generate bundled --file", "the prompt in /dev/zero"),
        ("chat bundled --template", "the chat template in /dev/zero"),
        ("generate bundled", "the prompt in standard input"),
        ("chat bundled", "a message in standard input"),
    ],
)
def test_what_never_ends_is_refused(
    line: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_input, "MOST_BYTES", 3 << 20)
    with open("/dev/zero", encoding="utf-8") as endless:
        monkeypatch.setattr("sys.stdin", endless)
        assert main([*line.split(), *(["/dev/zero"] if "/dev" in what else [])]) == 2
    assert f"isobit: error: {what} is longer than 3,145,728 bytes\n" in capsys.readouterr().err


def test_line_ends_of_a_file_are_those_of_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\r\nb\rc\n\xc3\xa9")
    assert text_input.file(tmp_path / "f", "x") == "a\nb\nc\n\u00e9"


def test_an_option_may_have_two_dashes_for_its_text(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(source), "a", "--max-tokens", "1", "--stop=--"]) == 0
    assert main(["generate", str(source), "--file=--"]) == 2
    assert "the prompt file -- cannot be read: No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", str(source), "a", "--seed=--"])
    assert "argument --seed: " in capsys.readouterr().err


# ---------------------------------------------------------------------- signals


STARTS = """
import os, signal, sys
from isobit.cli.main import main
class Slow:  # a module that takes its time, and swallows whatever is raised while it is loaded
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                os.kill(os.getpid(), {number})
                for _ in range(10**6): pass
            except BaseException:
                raise ImportError("something else") from None
sys.meta_path.insert(0, Slow())
sys.argv = ["isobit", "generate", "bundled", "a"]
sys.exit(main())
"""


@pytest.mark.parametrize(("number", "status", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_while_modules_are_loaded_ends_the_process(number: int, status: int, word: str) -> None:
    done = subprocess.run([sys.executable, "-c", STARTS.format(number=number)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"isobit: {word}\n")


def listens(process: subprocess.Popen[str]) -> bool:
    """Whether a process has a handler for SIGTERM: then isobit runs, and not only Python. Or it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return True
    caught = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return process.poll() is not None or (bool(caught) and int(caught[0], 16) >> (signal.SIGTERM - 1) & 1 == 1)


def test_ctrl_c_at_any_moment(source: Path) -> None:
    chance = random.Random(7)
    line = [sys.executable, "-m", "isobit", "eval", str(source), "--ctx", "64", "--tokens", "0", "-q"]
    ended = 0
    for _ in range(3):
        with subprocess.Popen(line, stdout=PIPE, stderr=PIPE, text=True, env=ENVIRONMENT) as process:
            while not listens(process):
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 2.0))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate()
        assert "Traceback" not in said
        if process.returncode != 0:  # else it was done before
            assert (process.returncode, said) == (130, "isobit: interrupted\n")
            ended += 1
    assert ended


def test_signals_in_a_program_of_its_own_are_left_alone(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.stdout
    assert main(["info", str(source)]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.stdout) == before


# ---------------------------------------------------------------------- what ends a command


def ends_with(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    def fails(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("isobit.api.info", fails)
    return main(["info", "bundled"]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), 2, "memory does not suffice"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"),
            2,
            "(ulimit -v",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "CUDA out of memory"),
        (RuntimeError("std::bad_alloc"), 2, "memory does not suffice (std::bad_alloc)"),
        (ImportError("libx.so: failed to map segment from shared object"), 2, "memory does not suffice"),
        (RuntimeError("can't start new thread"), 2, "no thread could be started"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a\nb"), 2, r"a\nb: No space left on device"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "f"), 2, "f: Permission denied"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 2, "(ulimit -n)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (signals.Terminated(), 143, "terminated"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: BaseException,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, said = ends_with(error, monkeypatch, capsys)
    assert found == status
    one_line(said, words)


def test_an_interruption_that_came_out_as_another_error_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ImportError("numpy could not be loaded")
    error.__cause__ = KeyboardInterrupt()
    assert ends_with(error, monkeypatch, capsys) == (130, "isobit: interrupted\n")


def test_a_bug_is_raised_here_and_one_line_of_a_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError):
        ends_with(KeyError("a\x1b[31m"), monkeypatch, capsys)
    capsys.readouterr()
    assert command._status(KeyError("a\x1b[31m"), of_the_process=True) == command.EXIT_BUG
    one_line(capsys.readouterr().err, "internal error: a bug in isobit: KeyError", command.TRACEBACK)
    assert failures.explain(ValueError("not enough values to unpack")) is None


# ---------------------------------------------------------------------- names and numbers

NAMES = {
    "nothing": "",
    "blank": "  ",
    "nul": "a\0b",
    "long": "x" * 300,
    "endless": "x/" * 3_000_000,
    "surrogate": "\ud800",
    "not UTF-8": "\udcff",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "line end": "owner/name\n",
    "nobody": "~nosuchuser/model",
    "device": "/dev/null",
    "endless device": "/dev/zero",
}
NUMBERS = ["-1", "1.5", "", "nan", "9" * 5000, "-" + "9" * 30, "1e9", "0x10", "99999999999999999999999"]

Lines = Callable[[str, str], list[list[str]]]


def outputs(name: str, model: str) -> list[list[str]]:
    """Names that no file can have."""
    return [
        ["quantize", model, "-s", "int8", "-o", name, "--dry-run"],
        ["eval", model, "--against", model, "--report", name],
        ["demo", "--out", name, "--schemes", "int8"],
        ["compile", model, "-o", name, "--target", "sm_86"],
        ["compile", "--listings", name, "--variant", "none"],
    ]


def with_name(name: str, model: str) -> list[list[str]]:
    return [
        ["info", name],
        ["plan", name],
        ["generate", name, "a"],
        ["chat", name],
        ["quantize", name, "-s", "int8", "--dry-run"],
        ["quantize", model, "-s", "fp8-static", "--calibration", name, "--dry-run"],
        ["eval", name],
        ["eval", model, "--against", name],
        ["eval", model, "--text", name],
        ["compile", name, "-o", "pack", "--target", "sm_86"],
        *([] if name.startswith(("~", "/dev", "\x1b", "owner", "\udcff")) else outputs(name, model)),
    ]


def with_number(number: str, model: str) -> list[list[str]]:
    return [
        ["eval", model, "--ctx", number],
        ["eval", model, "--seed", number],
        ["eval", model, "--stride", number],
        ["plan", model, "--batch", number],
        ["plan", model, "--context", number],
        ["plan", model, "--kv", number],
        ["plan", model, "--target", number],
        ["generate", model, "a", "--max-tokens", number],
        ["generate", model, "a", "--logprobs", number],
        ["quantize", model, "-s", "int8", "--threads", number, "--dry-run"],
        ["quantize", model, "-s", "int8", "--max-shard-size", f"{number}GB" * 80, "--dry-run"],
        ["quantize", model, "-s", number, "--dry-run"],
        ["info", model, "--revision", number],
    ]


@pytest.mark.parametrize(
    ("lines", "given"),
    [(with_name, name) for name in NAMES.values()] + [(with_number, number) for number in NUMBERS],
    ids=[*NAMES, *(f"number {number[:12]}" for number in NUMBERS)],
)
def test_names_and_numbers_that_nobody_expects_are_refused(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: Lines,
    given: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for line in lines(given, str(source)):
        shown = [part[:40] for part in line]
        try:
            status = main(line)
        except SystemExit as ended:  # of the argument parser
            status = int(ended.code or 0)
        said = capsys.readouterr()
        assert status == 2, (shown, status, said)
        assert said.out == "" and "\x1b" not in said.err and "Traceback" not in said.err, shown
        assert 0 < len(said.err) <= LONGEST_MESSAGE + 2500, shown  # the usage stands before the parser's errors
        said.err.encode("utf-8")
    assert not list(tmp_path.iterdir())


def test_hostile_names_in_a_checkpoint_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save_model(tmp_path / "\x1b[31mred\nisobit: forged")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.\x1b]0;own\x07\n.weight"] = torch.zeros(3)
    weights["y" * 1_000_000] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for extra in ({}, {"architectures": ["\x1b[31m" + "A" * 9_000_000], "model_type": "\x1b[1m"}):
        (folder / "config.json").write_text(json.dumps(config | extra))
        for line in (
            ["info", str(folder), "--tensors"],
            ["plan", str(folder), "--target", "sm_86", "--scheme", "int8"],
            ["quantize", str(folder), "-s", "int8", "--dry-run"],
            ["generate", str(folder), "a", "--max-tokens", "1"],
            ["eval", str(folder), "--tokens", "64", "--ctx", "64", "-q"],
        ):
            main(line)
            said = capsys.readouterr()
            assert "\x1b" not in said.out + said.err and "\nisobit: forged" not in said.out + said.err, line[0]
            assert len(said.out) < 60_000 and len(said.err) < 20_000, line[0]
