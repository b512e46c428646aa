"""Measurements of this machine: kept whole, used where they belong, and never in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isobit.cli.main import main
from isobit.errors import CapacityError
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu.threads import Threads
from isobit.legalize.advice import choose
from isobit.legalize.calibration import (
    Measurement,
    doubt_of_bandwidth,
    doubt_of_rounds,
    formats_key,
    machine_key,
    software_key,
)
from isobit.legalize.plan import Plan
from isobit.models import calibration
from isobit.models.planning import plans
from isobit.targets.detect import detect
from isobit.targets.here import here

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


def planned(path: Path | bool, scheme: str = "int8", **options: Any) -> Plan:
    """A plan of the last machine here, which is its CPU."""
    options = {"context": 1024} | options
    return plans(options.pop("model", LLAMA), scheme_names=[scheme], calibration=path, **options)[1][-1][0]


def measurement(plan: Plan, slower: float, **changes: Any) -> Measurement:
    """That a plan's case took so many times as long as predicted."""
    target, board = here(cpu_library.wanted_threads())[-1]
    cost = plan.cost
    assert cost is not None
    step = plan.request.batch / cost.decode
    found = Measurement(
        machine_key(target, board), board.name, software_key(False), "2026-11-28", "some-int8", formats_key(plan),
        "decode", plan.request.batch, plan.request.context, cost.step_bytes, slower * step, step, board.bandwidth,
    )  # fmt: skip
    return replace(found, **changes)


def speed(plan: Plan) -> float:
    assert plan.cost is not None
    return plan.cost.decode


def test_figures_of_fewer_threads_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads' figures say nothing of one's; the machine is the same, so that a note says why they are not used."""

    def run_on(threads: int) -> Plan:
        monkeypatch.setattr(cpu_library, "wanted_threads", lambda: Threads(threads, "ISOBIT_THREADS"))
        software_key.cache_clear()
        return planned(path)

    machine = replace(detect(programs=False), cores=2)
    monkeypatch.setattr("isobit.targets.here.detect", lambda: machine)
    monkeypatch.setattr("isobit.legalize.calibration.usable_cores", lambda: 2)
    path = tmp_path / "calibration.json"
    both = run_on(2)
    calibration.store(path, [measurement(both, 2.0)])
    assert speed(run_on(2)) == pytest.approx(speed(both) / 2)
    one = run_on(1)
    assert not one.measured_here and any("of other kernels, threads or versions" in note for note in one.notes)
    assert one.board.name == "this CPU, 1 of 2 cores (ISOBIT_THREADS)" and one.board.bandwidth < both.board.bandwidth
    calibration.store(path, [measurement(one, 2.0)])
    assert speed(run_on(1)) == pytest.approx(speed(one) / 2)
    software_key.cache_clear()


def test_a_measured_case_has_its_figure_and_says_so(tmp_path: Path) -> None:
    path, before = tmp_path / "calibration.json", planned(False)
    assert before.cost is not None and not before.cost.measured and not before.measured_here
    calibration.store(path, [measurement(before, 2.0)])
    after = planned(path)
    assert speed(after) == pytest.approx(speed(before) / 2)
    assert after.cost is not None and after.cost.measured and after.measured_here == "speed measured here on 2026-11-28"
    assert any("some-int8, 1 x 1024 tokens" in source for source in after.cost.sources)


def test_a_case_like_it_is_scaled_and_another_is_not(tmp_path: Path) -> None:
    path, before = tmp_path / "calibration.json", planned(False)
    calibration.store(path, [measurement(before, 2.0)])
    for options in ({"context": 512}, {"batch": 2}):
        like, alone = planned(path, **options), planned(False, **options)
        assert speed(like) == pytest.approx(speed(alone) / 2)
        assert like.measured_here.startswith("speed goes by what was measured here on 2026-11-28 (some-int8, 1 x 1024")
    small = {**LLAMA, "num_hidden_layers": 2, "vocab_size": 1000}
    for options in ({"batch": 64}, {"scheme": "fp8"}, {"model": small}):
        other, alone = planned(path, **options), planned(False, **options)
        assert speed(other) == pytest.approx(speed(alone)) and not other.measured_here


def test_schemes_that_were_not_measured_are_compared_as_if_they_were_as_far_off(tmp_path: Path) -> None:
    path, before = tmp_path / "calibration.json", planned(False)
    calibration.store(path, [measurement(before, 2.0)])
    names = ["bf16", "int8", "fp8"]
    asked = {"scheme_names": names, "context": 1024}
    plain = plans(LLAMA, calibration=False, **asked)[1][-1]
    found = plans(LLAMA, calibration=path, **asked)[1][-1]
    assert [speed(b) / speed(a) for a, b in zip(plain, found, strict=True)] == pytest.approx([0.5, 0.5, 0.5])
    assert found[1].measured_here == "speed measured here on 2026-11-28"
    for one in (found[0], found[2]):
        assert one.measured_here.startswith("not measured here: predicted, times 0.50 (1.00 for prompts) as int8 was")
        assert one.cost is not None and not one.cost.measured
    chosen = [choose(several) for several in (plain, found)]
    assert chosen[0] is not None and chosen[1] is not None and chosen[0].scheme == chosen[1].scheme


def test_the_measured_bandwidth_takes_the_place_of_an_estimate(tmp_path: Path) -> None:
    path, before = tmp_path / "calibration.json", planned(False, "fp8")
    usual = measurement(planned(False), 2.0)
    calibration.store(path, [replace(usual, bandwidth=4 * usual.bandwidth, predicted=usual.predicted / 4, steady=True)])
    after = planned(path, "fp8")
    assert after.board.bandwidth == 4 * before.board.bandwidth and speed(after) > 2 * speed(before)
    # int8 itself was measured: its figure is not faster for it than when it was measured beside that bandwidth
    board = after.board
    assert speed(planned(path)) < speed(planned(False)) and board.estimated


@pytest.mark.parametrize("changes", [{"steady": False}, {"steady": True, "software": "other threads"}])
def test_a_bandwidth_that_is_not_to_be_trusted_is_for_no_other_model(changes: dict[str, Any], tmp_path: Path) -> None:
    path, before = tmp_path / "calibration.json", planned(False, "fp8")
    usual = measurement(planned(False), 2.0)
    calibration.store(path, [replace(usual, bandwidth=usual.bandwidth / 4, **changes)])
    after = planned(path, "fp8")
    assert after.board.bandwidth == before.board.bandwidth and speed(after) == speed(before)


def test_a_file_of_before_is_read_and_its_bandwidth_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.store(path, [measurement(planned(False), 2.0, steady=True)])
    data = json.loads(path.read_text())
    assert data["measurements"][0].pop("steady") is True
    path.write_text(json.dumps(data))
    held = calibration.load(path)
    assert held.problem is None and [one.steady for one in held.found] == [False]


@pytest.mark.parametrize(
    ("readings", "rounds", "step_bytes", "share", "said"),
    [
        ([30e9, 33e9], 3, 1 << 30, 0.9, None),
        ([30e9, 33e9], 3, 1 << 30, None, None),
        ([30e9, 33e9], 3, 23_000_000, 0.9, "a step reads 23 MB, less than 67.1, which caches may hold"),
        ([30e9, 33e9], 1, 1 << 30, 0.9, "1 round is fewer than 3"),
        ([30e9, 33e9], 2, 1 << 30, 0.9, "2 rounds are fewer than 3"),
        ([10e9, 33e9], 3, 1 << 30, 0.9, "memory gave 10 to 33 GB/s: something else was running"),
        ([30e9, 33e9], 3, 1 << 30, 1.4, "steps read 1.40 times what memory gave"),
    ],
)
def test_what_speaks_against_a_bandwidth(
    readings: list[float], rounds: int, step_bytes: float, share: float | None, said: str | None
) -> None:
    found = doubt_of_bandwidth(readings, rounds, step_bytes, share)
    assert found == said if said is None or found is None else found.startswith(said)


def test_what_speaks_against_rounds() -> None:
    assert doubt_of_rounds([0.010]) is None and doubt_of_rounds([0.010, 0.014, 0.012]) is None
    said = doubt_of_rounds([0.010, 0.016, 0.012])
    assert said == "its 3 rounds took 10 to 16 ms: something else was running"


def test_the_newest_of_the_same_stays(tmp_path: Path) -> None:
    path, before = tmp_path / "calibration.json", planned(False)
    for slower in (3.0, 2.0):
        assert calibration.store(path, [measurement(before, slower)]) == 1
    assert calibration.store(path, [measurement(before, 9.0, batch=2, context=64)]) == 2
    assert speed(planned(path)) == pytest.approx(speed(before) / 2)
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"format": "something"}', "no calibration of isobit's"),
        ('{"format": "isobit calibration", "version": 2}', "of version 2"),
        ('{"format": "isobit calibration", "version": 1}', "no list of measurements"),
        ('{"format": "isobit calibration", "version": 1, "measurements": [{}]}', "a measurement has"),
    ],
)
def test_damaged_files_are_a_note(content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = tmp_path / "calibration.json", tmp_path / "config.json"
    path.write_text(content)
    config.write_text(json.dumps(LLAMA))
    after = planned(path)
    assert speed(after) == speed(planned(False))
    (note,) = (note for note in after.notes if str(path) in note)
    assert said in note and "is not used" in note
    assert main(["plan", str(config), "--scheme", "int8", "--calibration", str(path)]) == 0
    assert "is not used" in " ".join(capsys.readouterr().out.split())
    assert calibration.store(path, [measurement(planned(False), 2.0)]) == 1, "it is written anew"
    assert planned(path).measured_here


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"seconds": float("nan")}, {"batch": True}, {"phase": "sleep"}])
def test_impossible_numbers_are_damage(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.store(path, [measurement(planned(False), 2.0, **wrong)])
    assert calibration.load(path).found == () and calibration.load(path).problem


def test_other_kernels_and_other_machines(tmp_path: Path) -> None:
    path, before = tmp_path / "calibration.json", planned(False)
    calibration.store(path, [measurement(before, 2.0, machine="0" * 24)])
    assert planned(path) == before, "a home folder may be that of several machines"
    calibration.store(path, [measurement(before, 2.0, software="0" * 24)])
    after = planned(path)
    assert speed(after) == pytest.approx(speed(before)) and not after.measured_here
    assert any("of other kernels, threads or versions" in note for note in after.notes)


def test_only_what_is_here_goes_by_it(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.store(path, [measurement(planned(False), 2.0)])
    named = [plans(LLAMA, targets=["laptop"], scheme_names=["int8"], calibration=which)[1] for which in (path, False)]
    assert named[0] == named[1]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CapacityError, match="--no-store"):
        calibration.store(tmp_path / "file" / "calibration.json", [measurement(planned(False), 2.0)])


def test_where_data_is_kept(tmp_path: Path) -> None:
    def folder(system: str, **environment: str) -> Path | None:
        return calibration.data_folder(environment, system)

    home = Path.home()
    assert folder("linux") == home / ".local/share/isobit"
    assert folder("linux", XDG_DATA_HOME=str(tmp_path)) == tmp_path / "isobit"
    assert folder("linux", XDG_DATA_HOME="not/absolute") == home / ".local/share/isobit"
    assert folder("darwin", XDG_DATA_HOME=str(tmp_path)) == home / "Library/Application Support/isobit"
    assert folder("win32", LOCALAPPDATA=str(tmp_path)) == tmp_path / "isobit"
    assert folder("linux", ISOBIT_DATA=str(tmp_path / "own")) == tmp_path / "own"
