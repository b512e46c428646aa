"""`isobit eval` of several models: one table, results that are kept, an interrupted run that goes on, reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

import isobit
from isobit.cli.main import main
from isobit.engine.request import Schedule
from isobit.engine.runner import ModelRunner
from isobit.errors import UsageError
from isobit.evaluation import measure, several
from isobit.evaluation.kept import KeptLogits
from isobit.evaluation.windows import Window
from isobit.evaluation.work import Work, checkpoint_digest
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize

TEXT = "".join(f"def function_{i}(x):\n    return x * {i * i}\n\n" for i in range(60))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, two models made from it, and a text."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_model(folder / "source")
    for name in ("int8", "int4"):
        quantize(folder / "source", folder / name, Policy(scheme(name)), progress=False)
    (folder / "text.py").write_text(TEXT)
    return folder


@pytest.fixture()
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of models that are measured from here on, and not found."""
    names: list[str] = []
    real = measure.measured

    def noted(path: Path, name: str, *rest: object) -> measure.Evaluation:
        names.append(name)
        return real(path, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(several, "measured", noted)
    return names


def evaluate(models: Path, *names: str, **options: object) -> isobit.evaluation.comparison.Comparison:  # type: ignore[name-defined]
    settings = {"text": models / "text.py", "ctx": 64, "tokens": 400, **options}
    return isobit.compare([models / name for name in names], models / "source", **settings)


def test_each_row_is_what_the_model_gives_alone(models: Path) -> None:
    found = evaluate(models, "int8", "int4")
    for one in found.texts:
        alone = isobit.evaluate(models / one.model, models / "source", text=models / "text.py", ctx=64, tokens=400)
        assert (one.likelihood, one.fidelity) == (alone.likelihood, alone.fidelity)
    results = found.results
    assert results is not None
    assert [row.name for row in results.schemes] == ["int8", "int4"]
    assert {path.model for path in results.method.paths} == {"source", "int8", "int4"}
    assert results.schemes[0].fidelity.kl_mean.value < results.schemes[1].fidelity.kl_mean.value


def test_the_table_names_every_model_once(models: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    named = [str(models / name) for name in ("int8", "int4")]
    page, plain = tmp_path / "r.html", tmp_path / "r.md"
    text = ["--text", str(models / "text.py"), "--ctx", "64", "--tokens", "400", "-q"]
    assert main(["eval", *named, "--against", str(models / "source"), *text, "--report", str(page)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    rows = [line for line in lines[2:7] if line.startswith(("source (source)", "int8", "int4"))]
    assert len(rows) == 3 and "perplexity" in lines[2] and "KL mean" in lines[2]
    assert "int4 ran on cpu" in out
    html = page.read_text()
    assert html.count('<td><span class="swatch') == 3 and "Error by layer" in html
    assert main(["eval", *named, "--against", str(models / "source"), *text, "--report", str(plain), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in found["models"]] == ["int8", "int4"] and found["source"] == "source"
    assert "| int4 |" in plain.read_text() and plain.read_text().startswith(
        "# isobit eval: int8, int4 against source\n"
    )
    assert main(["eval", *named, *text, "--report", str(plain)]) == 0  # a report of before is written over
    assert "bits per byte" in capsys.readouterr().out
    assert "against" not in plain.read_text().splitlines()[0]


def test_what_was_kept_is_not_measured_again(models: Path, tmp_path: Path, measured: list[str]) -> None:
    work = tmp_path / "work"
    first = evaluate(models, "int8", work=work)
    both = evaluate(models, "int8", "int4", work=work, command="the second")
    assert measured == ["int8", "int4"]
    assert both.texts[0].fidelity == first.texts[0].fidelity
    assert both.texts[0].likelihood == first.texts[0].likelihood
    assert {one.method.command for one in both.texts} == {"the second"}
    assert both.results is not None and both.results.method.command == "the second"
    assert str(both) == str(evaluate(models, "int8", "int4"))  # as if nothing had been kept


@pytest.mark.parametrize("change", ["ctx", "tokens", "seed", "text", "model", "source", "isobit"])
def test_whatever_figures_depend_on_is_measured_anew(
    change: str, models: Path, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("source", "int8"):
        (tmp_path / name).mkdir()
        for file in (models / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "text.py").write_text(TEXT)
    options: dict[str, object] = {"work": tmp_path / "work", "ctx": 64, "tokens": 200}
    evaluate(tmp_path, "int8", **options)
    evaluate(tmp_path, "int8", **options)
    assert measured == ["int8"]
    match change:
        case "ctx" | "tokens" | "seed":
            options[change] = 65
        case "text":
            (tmp_path / "text.py").write_text(TEXT + "\n")
        case "isobit":
            monkeypatch.setattr(several, "own_digest", lambda: "another")
        case _:
            file = tmp_path / ("int8" if change == "model" else "source") / "generation_config.json"
            file.write_text('{"eos_token_id": 0, "temperature": 0.5}')
    evaluate(tmp_path, "int8", **options)
    assert measured == ["int8", "int8"]


def test_an_interrupted_run_goes_on(
    models: Path, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    real = measure.load_subject

    def stops(path: Path, *args: object, **kwargs: object) -> measure.Subject:
        if path.name == "int4":
            raise KeyboardInterrupt
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "load_subject", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, "int8", "int4", work=work)
    monkeypatch.setattr(measure, "load_subject", real)
    found = evaluate(models, "int8", "int4", work=work)
    assert measured == ["int8", "int4", "int4"]
    assert str(found) == str(evaluate(models, "int8", "int4"))


def test_damaged_results_are_measured_again(models: Path, tmp_path: Path, measured: list[str]) -> None:
    work = tmp_path / "work"
    evaluate(models, "int8", work=work)
    (file,) = (work / "text").iterdir()
    for content in (b"", b"{}", file.read_bytes()[:-40], file.read_bytes().replace(b'"tokens"', b'"tokons"')):
        file.write_bytes(content)
        evaluate(models, "int8", work=work)
    assert measured == ["int8"] * 5


def test_the_sources_logits_are_read_and_not_computed_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, computed = tmp_path / "work", []
    real = ModelRunner.run

    def noted(runner: ModelRunner, schedule: Schedule) -> torch.Tensor:
        computed.append(id(runner.model))
        return real(runner, schedule)

    monkeypatch.setattr(ModelRunner, "run", noted)
    evaluate(models, "int8", work=work)
    alone = len(computed)
    kept = evaluate(models, "int4", work=work)
    assert len(computed) - alone == alone // 2  # of the model alone
    for file in (work / "logits").glob("*/*"):  # a changed bit is seen
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    (work / "text").rename(work / "forgotten")
    assert evaluate(models, "int4", work=work).texts[0].fidelity == kept.texts[0].fidelity
    assert len(computed) - alone == alone // 2 + alone


def test_logits_that_are_too_large_are_not_kept_and_that_is_said(models: Path, tmp_path: Path) -> None:
    found = evaluate(models, "int8", work=tmp_path / "work", logits_gb=1e-6)
    assert "its logits were not kept for other models: they have 0.0 GB" in found.notes[-1]
    assert not list((tmp_path / "work").glob("logits/*/*"))
    assert found.texts[0].fidelity == evaluate(models, "int8").texts[0].fidelity


def test_the_oldest_logits_make_room(tmp_path: Path) -> None:
    window = Window((1, 2, 3), 1)
    for key in ("first", "second", "third"):
        kept = KeptLogits(tmp_path, key, 250, 100)
        kept.put(window, torch.ones(2, 5))
        assert kept.why_not is None
    assert not (tmp_path / "first").exists()
    assert {path.name for path in tmp_path.iterdir()} >= {"third"}
    found = KeptLogits(tmp_path, "third", 250, 100).get(window)
    assert found is not None and torch.equal(found, torch.ones(2, 5))
    assert KeptLogits(tmp_path, "third", 250, 100).get(Window((1, 2, 4), 1)) is None


def test_a_folder_of_other_things_is_left_alone(models: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(UsageError, match="the folder has other files in it"):
        evaluate(models, "int8", work=tmp_path)
    with pytest.raises(UsageError, match="this is no folder"):
        evaluate(models, "int8", work=tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_two_processes_do_not_share_a_folder(models: Path, tmp_path: Path) -> None:
    work = Work(tmp_path / "work")
    with pytest.raises(UsageError, match="another process is writing"):
        evaluate(models, "int8", work=tmp_path / "work")
    work.close()
    evaluate(models, "int8", work=tmp_path / "work")


def test_a_checkpoint_is_known_by_what_is_in_it(models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (models / "int8").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert checkpoint_digest(copy) == checkpoint_digest(models / "int8")
    weights = next(copy.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoint_digest(copy) != checkpoint_digest(models / "int8")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["int8", "int8"], "int8 is named twice"),
        (["int8", "--logits", "-1"], "logits_gb must be a number of gigabytes"),
        (["int8", "--tasks", ","], "text that is not empty"),
        (["int8", "--tasks", "x", "--limit", "0"], "limit must be a number of items"),
        (["int8", "--tasks", "x", "--system-instruction", "be"], "a system message needs conversations"),
        (["int8", "--report", "r.html"], "give the source with --against"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    argv: list[str], message: str, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    assert main(["eval", *argv]) == 2
    assert message in capsys.readouterr().err


def test_without_the_harness_one_line_says_how_to_get_it(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "lm_eval" else real(name, *rest)
    )
    assert main(["eval", str(models / "int8"), "--tasks", "hellaswag"]) == 2
    err = capsys.readouterr().err
    assert "pip install 'isobit[harness]'" in err and len(err.splitlines()) == 1


def test_what_is_to_be_known_about_checkpoints_is_said_of_tasks_alone_too() -> None:
    from isobit.evaluation.comparison import Comparison
    from isobit.evaluation.tasks.evaluate import TaskComparison
    from isobit.evaluation.tasks.results import TaskRun, TaskSetup

    one, other = (TaskRun((), "", 10, None, (), "0.4.13", "cpu", "2026-01-01", (note,)) for note in ("this", "that"))
    tasks = TaskComparison(TaskSetup(("x",)), ("source", other), (("int4", one),))
    assert Comparison(("int4",), "source", (), tasks).notes == ("source: that", "this")
    both = TaskComparison(TaskSetup(("x",)), None, (("int4", one), ("int8", other)))
    assert Comparison(("int4", "int8"), None, (), both).notes == ("int4: this", "int8: that")
