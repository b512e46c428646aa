"""`isobit bench`: figures that fit together, kept for later plans. How fast the machine is, no test says."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import isobit
from isobit.checkpoint.source import resolve
from isobit.cli.main import main
from isobit.engine.generate import load_llm
from isobit.errors import CapacityError, UsageError
from isobit.evaluation import bench
from isobit.models.cache.paged import BLOCK

OPTIONS = ["--batch", "2,1", "--prompt", "8", "--new", "6", "--context", "100", "--rounds", "1"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "calibration.json"


@pytest.fixture(scope="module")
def found(kept: Path) -> Any:
    out = kept.with_name("bench.json")
    assert main(["bench", "bundled", *OPTIONS, "-q", "--calibration", str(kept), "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_figures_fit_together(found: Any, kept: Path) -> None:
    cases = [(one["phase"], one["sequences"], one["prompt_tokens"]) for one in found["cases"]]
    assert cases == [("decode", 2, 8), ("decode", 1, 8), ("decode", 1, 100), ("prefill", 1, 512)]
    assert found["kept_in"] == str(kept) and found["target"].startswith("cpu-") and found["threads"] >= 1
    for one in found["cases"]:
        assert 0 < one["host_seconds"] < one["step_seconds"] and one["first_token_seconds"] > 0
        assert one["share_of_bandwidth"] > 0 and one["bandwidth_bytes_per_second"] > 0
        decoded = one["sequences"] / one["step_seconds"]
        speed = one["tokens_per_second"]
        assert speed == pytest.approx(decoded if one["phase"] == "decode" else one["prefill_tokens_per_second"])
        assert one["of_planned"] == pytest.approx(speed / one["planned_tokens_per_second"])


def test_a_plan_for_this_machine_says_what_was_measured(
    found: Any, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in found["cases"][:3]:
        context = str(one["prompt_tokens"] + one["new_tokens"] // 2)
        words = ["plan", "bundled", "--scheme", "bf16", "--context", context, "--batch", str(one["sequences"])]
        assert main([*words, "--calibration", str(kept), "--json"]) == 0
        speed = json.loads(capsys.readouterr().out)["plans"][-1]["speed"]
        assert speed["decode_tokens_per_second"] == pytest.approx(one["tokens_per_second"], rel=1e-3)
        assert "measured here on 20" in speed["measured_here"] and speed["measured"]
        assert main([*words, "--no-calibration", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["plans"][-1]["speed"]["measured_here"] is None


def test_nothing_is_kept_unless_it_is_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("ISOBIT_DATA", str(tmp_path / "data"))
    few = ["--batch", "1", "--prompt", "4", "--new", "4", "--rounds", "1"]
    assert main(["bench", "bundled", *few, "--no-store"]) == 0
    shown = capsys.readouterr()
    assert not (tmp_path / "data").exists() and "kept in" not in shown.out
    assert "tok/s" in shown.out and "measuring: 1 x (4 + 4) tokens" in shown.err
    assert main(["bench", "bundled", *few, "-q"]) == 0
    shown = capsys.readouterr()
    assert str(tmp_path / "data" / "calibration.json") in shown.out and shown.err == ""


def test_the_python_interface() -> None:
    done: list[str] = []
    found = isobit.bench("bundled", batches=[1], prompt=4, new=4, rounds=1, progress=done.append)
    assert len(found.figures) == len(found.measurements) == 2 and done[0] == "loading" and len(done) == 3
    assert found.figures[0].speed == pytest.approx(1 / found.figures[0].measured.step)


def _machine_gives(monkeypatch: pytest.MonkeyPatch, seconds: list[float], readings: list[float]) -> None:
    """Rounds and readings as given, in the place of those of this machine."""
    steps, memory = itertools.cycle(seconds), itertools.cycle(readings)
    monkeypatch.setattr(bench.Reader, "memory", lambda self: next(memory))

    def run(llm: Any, prompts: list[list[int]], new: int, counts: bool = True) -> bench.Round:
        step = next(steps) if counts else 1.0
        return bench.Round((step,), None, step, step, step)

    monkeypatch.setattr(bench, "_run", run)


def _kept(path: Path) -> list[bool]:
    """Of what is kept, whether its bandwidth is for other models."""
    return [one["steady"] for one in json.loads(path.read_text())["measurements"]]


def test_a_small_model_keeps_its_figures_and_no_bandwidth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _machine_gives(monkeypatch, [0.01], [20e9])
    path = tmp_path / "calibration.json"
    assert main(["bench", "bundled", *OPTIONS[:-1], "3", "-q", "--calibration", str(path)]) == 0
    said = capsys.readouterr().out
    assert _kept(path) == [False] * 4 and f"kept in {path}: 4 cases; plans" in said
    assert re.search(r"not kept: the memory's bandwidth, for plans of other models: a step reads \d\d.* MB", said)


def test_a_large_step_keeps_the_bandwidth_unless_the_machine_was_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("isobit.legalize.calibration.ENOUGH_BYTES", 1 << 20)
    words = ["bench", "bundled", *OPTIONS[:-1], "3", "-q", "--calibration"]
    for readings, steady, said in (
        ([20e9], True, "4 cases and, for other models, too, the memory's bandwidth of 20.0 GB/s; plans"),
        ([20e9, 9e9], False, "memory gave 9 to 20 GB/s: something else was running"),
    ):
        path = tmp_path / f"{steady}.json"
        _machine_gives(monkeypatch, [0.01], readings)
        assert main([*words, str(path)]) == 0
        assert _kept(path) == [steady] * 4 and said in capsys.readouterr().out


def test_rounds_that_differ_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _machine_gives(monkeypatch, [0.01, 0.02, 0.01], [20e9])
    path = tmp_path / "calibration.json"
    out = tmp_path / "bench.json"
    assert main(["bench", "bundled", "--rounds", "3", "-q", "--calibration", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert not path.exists() and "kept in" not in said
    assert "not kept: 8 behind 64 tokens: its 3 rounds took 10 to 20 ms: something else was running" in said
    assert "not kept: a prompt of 512: its 3 rounds" in said
    found = json.loads(out.read_text())
    assert found["kept_in"] is None and len(found["not_kept"]) == 3 and all(one["not_kept"] for one in found["cases"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", "1,0"], "batches must be a whole number from 1"),
        (["--batch", "many"], "no list of numbers"),
        (["--new", "1"], "new must be"),
        (["--prompt", "1020", "--new", "8"], "this model's context is 1024 tokens"),
        (["--context", "1020", "--new", "8"], "this model's context is 1024 tokens"),
        (["--target", "sm_86"], "add --device cuda"),
    ],
)
def test_mistakes(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(["bench", "bundled", *options, "--no-store", "-q"])
    except SystemExit as error:
        status = error.code
    assert status == 2 and said in capsys.readouterr().err


def test_all_sequences_decode_together_in_a_cache_of_a_case() -> None:
    case = bench.Case(8, 32, 12)
    llm = load_llm(resolve("bundled"), sequences=8, cache_tokens=BLOCK * case.blocks, prefix_cache=False)
    found = bench._run(llm, bench._prompts(case, 1000), case.new)
    assert len(found.steps) == case.new - 1 - bench.SETTLE_STEPS and sum(found.steps) < found.whole
    tight = load_llm(resolve("bundled"), sequences=8, cache_tokens=BLOCK * 8, prefix_cache=False)
    with pytest.raises(CapacityError, match="8 sequences never decoded together"):
        bench._run(tight, bench._prompts(case, 1000), case.new)


@pytest.mark.parametrize(("recording", "runs"), [([], 4), ([0, 1], 6), ([3], 5), ([*range(99)], 11)])
def test_a_round_in_which_steps_were_recorded_is_none(
    recording: list[int], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three rounds behind a warm-up; ``recording`` are the runs in which something is, the last case for ever."""
    case, made = bench.Case(2, 4, 6), []
    llm: Any = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(vocab_size=50)), engine=SimpleNamespace(recorded=7)
    )

    def run(llm: Any, prompts: list[list[int]], new: int, counts: bool = True) -> bench.Round:
        slow = len(made) in recording
        llm.engine.recorded += slow
        made.append(counts)
        return bench.Round((9.0 if slow else 1.0,), (0.5,), 1.0, 2.0, 3.0)

    monkeypatch.setattr(bench, "_run", run)
    found = bench.measure(llm, case, lambda: 1e9)
    assert len(made) == runs and sum(made) >= 3 and not made[0]
    assert found.step == (9.0 if len(recording) > bench.MOST_AGAIN else 1.0)


def test_cases() -> None:
    found = bench.cases([8, 1, 8], 64, 32, 512, 1024)
    assert [(one.batch, one.prompt, one.context) for one in found] == [(8, 64, 80), (1, 64, 80), (1, 512, 528)]
    with pytest.raises(UsageError, match="context is 1024"):
        bench.cases([1], 1000, 25, None, 1024)


@pytest.mark.parametrize("held", ["my precious text", '{"broken', "[]", '{"format": "another"}'])
def test_no_other_file_is_written_over(held: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(held)
    assert main(["bench", "bundled", "--calibration", str(file)]) == 2
    assert "would be overwritten" in capsys.readouterr().err and file.read_text() == held


def test_short_answers_of_many_prompts_warm_up() -> None:
    """The first of them end before the last prompt is read."""
    case = bench.Case(8, 32, 12)
    llm = load_llm(resolve("bundled"), sequences=8, chunk=32, cache_tokens=BLOCK * case.blocks, prefix_cache=False)
    assert bench.measure(llm, case, lambda: 1e9, rounds=1, warm_up=4).step > 0
