"""A real process, really killed: the next run goes on, and its bytes are those of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import hashes, tensors, write

from isobit.checkpoint.occupant import CONFIG, PARTIAL
from isobit.errors import UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize
from isobit.quantizer.report import QuantizeReport

LAYERS = 8
SCHEME = "int4-g32"

# The child quantizes as the command does, and commits every tensor. It pauses at its own journal line so that there is
# a moment to kill it in: argument 3 is a number of lines, or -1 for no pause.
CHILD = """
import sys, time
from pathlib import Path
from isobit.checkpoint.journal import Journal
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize

source, out, pause = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
append = Journal.append
def paused(self, entries):
    append(self, entries)
    if len(self.entries) == pause:
        print("here", flush=True)
        time.sleep(float(sys.argv[5]))
Journal.append = paused
quantize(source, out, Policy(scheme(sys.argv[4])), progress=False, commit_bytes=1, max_shard_bytes=60_000)
"""


def source(tmp_path: Path) -> Path:
    return write(tmp_path / "src", tensors(layers=LAYERS), num_hidden_layers=LAYERS)


def run(folder: Path, out: Path, **options: bool) -> QuantizeReport:
    return quantize(
        folder, out, Policy(scheme(SCHEME)), progress=False, commit_bytes=1, max_shard_bytes=60_000, **options
    )


@contextmanager
def child(folder: Path, out: Path, pause: int, seconds: float = 60) -> Iterator[subprocess.Popen[str]]:
    """A child that is gone at the end, whatever happens."""
    command = [sys.executable, "-c", CHILD, str(folder), str(out), str(pause), SCHEME, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def kill_at(
    folder: Path, out: Path, pause: int, how: signal.Signals = signal.SIGKILL, seconds: float = 60
) -> tuple[int, str]:
    """Runs a child up to its journal line number ``pause``, then sends it a signal: (status, stderr)."""
    with child(folder, out, pause, seconds) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        process.send_signal(how)
        _, error = process.communicate()
        return process.returncode, error


def test_killed_again_and_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    folder, out = source(tmp_path), tmp_path / "out"
    undisturbed = run(folder, tmp_path / "undisturbed")
    lines = len(undisturbed.modules)
    assert len(undisturbed.files) > 5  # several shards
    for pause in (1, lines // 2, lines + 1):  # the last: about to move the files up
        assert kill_at(folder, out, pause)[0] == -signal.SIGKILL
        assert not (out / CONFIG).exists()
    report = run(folder, out)
    assert report.resumed_from == lines
    assert hashes(out) == hashes(tmp_path / "undisturbed")
    assert report.modules == undisturbed.modules and report.bytes_read == 0


def test_killed_at_random_moments_the_bytes_are_the_same(tmp_path: Path) -> None:
    folder, out = source(tmp_path), tmp_path / "out"
    run(folder, tmp_path / "undisturbed")
    chance = random.Random(7)
    for _ in range(2):
        with child(folder, out, -1) as process:
            while not (out / PARTIAL).exists() and process.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.1))
            process.kill()
            process.communicate()
        if process.returncode == 0:
            break
        assert (out / CONFIG).exists() <= (set(hashes(out)) >= set(hashes(tmp_path / "undisturbed")))
    try:
        run(folder, out)
    except UsageError as error:  # the child was faster
        assert "finished checkpoint" in str(error)
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_interrupted_from_the_keyboard_the_work_is_kept(tmp_path: Path) -> None:
    folder, out = source(tmp_path), tmp_path / "out"
    run(folder, tmp_path / "undisturbed")
    status, error = kill_at(folder, out, 5, signal.SIGINT, seconds=1)
    assert status != 0 and "KeyboardInterrupt" in error
    report = run(folder, out)
    assert report.resumed_from >= 5
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_a_second_process_is_refused_while_the_first_one_writes(tmp_path: Path) -> None:
    folder, out = source(tmp_path), tmp_path / "out"
    with child(folder, out, 3) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        with pytest.raises(UsageError, match="another process is writing"):
            run(folder, out)
    assert run(folder, out).resumed_from >= 3


def test_a_source_that_changed_meanwhile_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    folder, out = source(tmp_path), tmp_path / "out"
    kill_at(folder, out, 5)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(UsageError, match="unfinished run of another job .source"):
        run(folder, out)
    assert run(folder, out, resume=False).resumed_from == 0
