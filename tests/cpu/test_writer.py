"""The output folder: shard layout, journal, lock, refusals, and being cut off at every single step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import hashes
from safetensors import safe_open

from isobit.checkpoint import durable, room
from isobit.checkpoint.journal import Journal
from isobit.checkpoint.occupant import CONFIG, PARTIAL, REPORT
from isobit.checkpoint.safetensors import read_header
from isobit.checkpoint.shards import PlannedShard, PlannedTensor, index_json, plan_shards
from isobit.checkpoint.writer import OutputFolder
from isobit.errors import CapacityError, CheckpointError, UsageError

TENSORS = {
    "a.weight": torch.arange(15, dtype=torch.uint8).reshape(3, 5),  # an odd size: what follows could be misaligned
    "a.weight_scale": torch.arange(3, dtype=torch.float32),
    "b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "c.weight": torch.arange(4, dtype=torch.int32).reshape(2, 2),
    "d.scalar": torch.tensor(3.5),
}
MODULES = [["a.weight", "a.weight_scale"], ["b.weight"], ["c.weight"], ["d.scalar"]]
NAMES = {torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32"}
JOB = {"scheme": "fp8", "source": "0123"}
FILES = {CONFIG: b"{}", REPORT: json.dumps({"files": {}}).encode()}


def planned(max_bytes: int = 25) -> tuple[PlannedShard, ...]:
    modules = [[PlannedTensor(n, NAMES[TENSORS[n].dtype], tuple(TENSORS[n].shape)) for n in names] for names in MODULES]
    return plan_shards(modules, max_bytes)


def run(out: Path, *, job: dict[str, str] = JOB, companion: Path | None = None, **options: bool) -> OutputFolder:
    """Writes everything that is not done yet."""
    report = json.dumps({"files": {shard.name: shard.nbytes for shard in planned()} | {CONFIG: 2}})
    with OutputFolder(out, job, planned(), commit_bytes=1, **options) as output:
        if output.finished:
            return output
        for names in MODULES:
            if names[0] not in output.done:
                for name in names:
                    output.write(name, TENSORS[name])
                output.complete(names[0], {"n": len(names)})
        copies = {} if companion is None else {"sub/companion.txt": companion}
        output.finish({CONFIG: b"{}", REPORT: report.encode()}, copies)
    return output


def test_shards_keep_modules_together_and_align_every_tensor() -> None:
    shards = planned(40)
    assert [shard.name for shard in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [sorted(shard.tensors) for shard in shards] == [
        ["a.weight", "a.weight_scale", "b.weight"],
        ["c.weight", "d.scalar"],
    ]
    for shard in shards:
        assert len(shard.header) % 8 == 0
        for name, tensor in shard.tensors.items():
            assert shard.offsets[name] % tensor.itemsize == 0
    assert [shard.name for shard in planned(1000)] == ["model.safetensors"]
    assert index_json(planned(1000)) is None


def test_index_names_every_tensor_and_the_total() -> None:
    content = index_json(planned())
    assert content is not None
    index = json.loads(content)
    assert set(index["weight_map"]) == set(TENSORS)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in TENSORS.values())


def test_a_name_planned_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="'x' is planned twice"):
        plan_shards([[PlannedTensor("x", "U8", (1,))], [PlannedTensor("x", "U8", (1,))]], 10)


def test_what_is_written_can_be_read_by_the_safetensors_library_and_by_us(tmp_path: Path) -> None:
    run(tmp_path / "out")
    found = {}
    for shard in planned():
        read_header(tmp_path / "out" / shard.name)
        with safe_open(tmp_path / "out" / shard.name, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_parts_of_a_tensor_go_to_their_offset(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", JOB, planned(1000)) as output:
        output.write("a.weight", TENSORS["a.weight"][1:], offset=5)
        output.write("a.weight", TENSORS["a.weight"][:1])
        with pytest.raises(ValueError, match="not what was planned"):
            output.write("a.weight", TENSORS["a.weight"], offset=5)
        output.commit()
        shard = planned(1000)[0]
        data = (output.partial / shard.name).read_bytes()[shard.offsets["a.weight"] :][:15]
    assert data == bytes(range(15))


def test_nothing_but_the_output_remains(tmp_path: Path) -> None:
    companion = tmp_path / "companion.txt"
    companion.write_text("hello")
    run(tmp_path / "out", companion=companion)
    assert set(hashes(tmp_path / "out")) == {s.name for s in planned()} | {CONFIG, REPORT, "sub/companion.txt"}
    assert not (tmp_path / "out" / PARTIAL).exists()


@pytest.fixture(autouse=True)
def _no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs matter when the power fails, which no test can do; without them the tests take seconds, not minutes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it but the test, and the process goes on as a new one would."""


# Every change that the output folder makes to the disk goes through one of these.
STEPS: list[tuple[object, str]] = [
    (os, "pwrite"),
    (os, "fsync"),
    (os, "replace"),
    (os, "rename"),
    (os, "ftruncate"),
    (Path, "unlink"),
    (Path, "rmdir"),
    (Path, "mkdir"),
]


def kill_before_step(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Makes the ``number``-th change to the disk (from 1) kill instead; returns a counter of changes."""
    count = 0

    def wrap(original: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count >= number:
                raise Killed  # and whatever cleaning up comes after changes nothing either
            return original(*args, **kwargs)

        return step

    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return lambda: count


def count_steps(out: Path, **options: bool) -> int:
    with pytest.MonkeyPatch.context() as patch:
        counter = kill_before_step(patch, 1 << 60)
        run(out, **options)
        return counter()


def killed_run(out: Path, step: int, **options: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_before_step(patch, step)
        with pytest.raises(Killed):
            run(out, **options)


def test_killed_before_any_step_the_next_run_gives_the_same_bytes(tmp_path: Path) -> None:
    steps = count_steps(tmp_path / "undisturbed")
    expected = hashes(tmp_path / "undisturbed")
    assert steps > 60
    for step in range(1, steps + 1):
        out = tmp_path / f"killed-{step}"
        killed_run(out, step)
        if (out / CONFIG).exists():  # looks complete: then it is
            assert {name: value for name, value in hashes(out).items() if PARTIAL not in name} == expected
        if set(hashes(out)) == set(expected):
            continue  # killed while removing the empty folder: nothing is left to do
        try:
            run(out)
        except UsageError as error:  # killed at the very last steps: it is finished, and says so
            assert "finished checkpoint" in str(error)
        assert hashes(out) == expected, step
        assert not (out / PARTIAL).exists()


def test_killed_while_replacing_an_old_checkpoint_the_next_run_gives_the_same_bytes(tmp_path: Path) -> None:
    def with_old(name: str) -> Path:
        out = tmp_path / name
        out.mkdir()
        (out / "old.safetensors").write_text("old weights")
        (out / "mine.txt").write_text("the user's own file")
        (out / CONFIG).write_text("old config")
        (out / REPORT).write_text('{"files": {"old.safetensors": 11, "config.json": 10}}')
        return out

    undisturbed = with_old("undisturbed")
    steps = count_steps(undisturbed, overwrite=True)
    expected = hashes(undisturbed)
    assert "mine.txt" in expected and "old.safetensors" not in expected
    for step in range(1, steps + 1):
        out = with_old(f"killed-{step}")
        killed_run(out, step, overwrite=True)
        if (out / CONFIG).exists():  # looks complete: it is the old one, or the new one
            found = hashes(out)
            assert found.items() >= expected.items() or (out / "old.safetensors").exists()
        run(out, overwrite=True)
        assert hashes(out) == expected, step


def test_a_torn_journal_line_is_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tmp_path / "undisturbed")
    steps = count_steps(tmp_path / "again")
    killed_run(out, steps // 2)
    journal = out / PARTIAL / "journal"
    with open(journal, "a") as file:
        file.write('{"done": "c.wei')
    assert run(out).resumed
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_a_damaged_journal_is_refused_and_can_be_thrown_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_run(out, count_steps(tmp_path / "undisturbed") // 2)
    journal = out / PARTIAL / "journal"
    journal.write_bytes(journal.read_bytes().replace(b'{"done"', b'{"done', 1))
    with pytest.raises(CheckpointError, match="journal.*damaged"):
        run(out)
    run(out, resume=False)
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_a_shard_that_vanished_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_run(out, count_steps(tmp_path / "undisturbed") // 2)
    (out / PARTIAL / planned()[0].name).unlink()
    with pytest.raises(CheckpointError, match="not what the journal"):
        run(out)


def test_another_job_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_run(out, count_steps(tmp_path / "undisturbed") // 2)
    with pytest.raises(UsageError, match="scheme: fp8 then, int4 now"):
        run(out, job=JOB | {"scheme": "int4"})
    assert not run(out, job=JOB | {"scheme": "int4"}, resume=False).resumed


def test_starting_over_in_the_middle_of_moving_up_leaves_no_old_file(tmp_path: Path) -> None:
    steps = count_steps(tmp_path / "undisturbed")
    moved = 0
    for step in range(steps // 2, steps):
        out = tmp_path / f"killed-{step}"
        killed_run(out, step)
        if (out / CONFIG).exists() or not (out / planned()[0].name).exists():
            continue
        moved += 1
        run(out, job=JOB | {"scheme": "int4"}, resume=False)
        assert hashes(out) == hashes(tmp_path / "undisturbed")
    assert moved


def test_a_foreign_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    for options in ({}, {"overwrite": True}, {"resume": False}):
        with pytest.raises(UsageError, match="not empty .photo.jpg"):
            run(tmp_path, **options)
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_a_finished_folder_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    run(tmp_path / "out")
    before = hashes(tmp_path / "out")
    with pytest.raises(UsageError, match="finished checkpoint.*--overwrite"):
        run(tmp_path / "out")
    assert hashes(tmp_path / "out") == before
    run(tmp_path / "out", overwrite=True)
    assert hashes(tmp_path / "out") == before


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        run(tmp_path / "out")


def test_a_refused_run_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda path: 3)
    with pytest.raises(CapacityError, match="lacks space: the output needs .* 3 are free"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", JOB, planned()):
        with pytest.raises(UsageError, match="another process is writing"):
            OutputFolder(tmp_path / "out", JOB, planned())
    run(tmp_path / "out")


def test_a_lock_file_that_was_removed_meanwhile_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = durable.fcntl.flock
    removed = []

    def remove_first(descriptor: int, how: int) -> None:
        if not removed:  # its holder finishes between our open and our flock
            removed.append((tmp_path / "lock").unlink())
        flock(descriptor, how)

    monkeypatch.setattr(durable.fcntl, "flock", remove_first)
    descriptor = durable.lock_folder(tmp_path, "lock", "it")
    assert os.fstat(descriptor).st_ino == (tmp_path / "lock").stat().st_ino
    os.close(descriptor)


def test_notes_survive(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", JOB, planned()) as output:
        assert output.noted("scales") is None
        output.note({"scales": {"a": 0.1}})
    with OutputFolder(tmp_path / "out", JOB, planned()) as output:
        assert output.noted("scales") == {"a": 0.1}


def test_an_empty_journal_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert Journal.open(path) is None
    path.write_bytes(b'{"torn": ')
    assert Journal.open(path) is None
