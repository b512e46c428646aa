"""Tasks of lm-evaluation-harness on isobit: scores against transformers, the same figures over HTTP, the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra harness is not installed")
pytest.importorskip("datasets")

import served
import tiny
import torch
import toy_tasks

from isobit import api
from isobit.cli.main import main
from isobit.errors import UsageError
from isobit.evaluation.tasks import run as running
from isobit.evaluation.tasks.adapter import IsobitLM
from isobit.evaluation.tasks.results import TaskSetup
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize

pytestmark = [
    pytest.mark.harness,
    # Of the harness and its data libraries, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_tasks.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save_model(folder / "source")
    quantize(folder / "source", folder / "int4", Policy(scheme("int4")), progress=False)
    return folder


def asked(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def evaluate(lm: IsobitLM, tasks: Path, **settings: Any) -> running.TaskRun:
    harness = running.Harness(TaskSetup(toy_tasks.ALL, include=(str(tasks),), **settings), quiet=True)
    found = None
    for task in toy_tasks.ALL:
        one = harness.run(lm, task, "cpu")
        found = one if found is None else found.joined(one)
    assert found is not None
    return found


def test_scores_are_those_of_transformers(models: Path) -> None:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(models / "source", dtype=torch.float32).eval()
    lm = IsobitLM(api.LLM(models / "source"), quiet=True)
    pairs = [("def f(x):", " return x"), ("", "import os"), ("  ", "pass"), ("a", "b"), ("abc " * 90, "d e f")]
    found = lm.loglikelihood([asked(*pair) for pair in pairs])
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        # A byte is a token; end-of-text (0) stands in front where there is no context.
        text = context.rstrip()
        before = lm.tok_encode(text) if text else [0]
        after = lm.tok_encode(context[len(text) :] + continuation)
        ids = torch.tensor([(before + after)[-256:]])
        with torch.inference_mode():
            logp = torch.log_softmax(reference(ids).logits[0].double(), dim=1)[-len(after) - 1 : -1]
        targets = ids[0, -len(after) :]
        assert value == pytest.approx(float(logp.gather(1, targets[:, None]).sum()), rel=1e-4)
        assert greedy == bool((logp.argmax(dim=1) == targets).all())
    assert lm.seen == {"texts cut on the left to the 255 tokens that are read": 1}


def test_every_token_of_a_long_text_is_scored_once(models: Path) -> None:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(models / "source", dtype=torch.float32).eval()
    lm = IsobitLM(api.LLM(models / "source"), quiet=True, max_length=50)
    text = "".join(f"line {number}\n" for number in range(21))
    (found,) = lm.loglikelihood_rolling([asked(text)])
    ids, total, done = lm.tok_encode(text), 0.0, 0
    assert len(ids) > 150
    while done < len(ids):  # windows of 50, the last one ends with the text and scores what is left
        fresh = min(50, len(ids) - done)
        begin = max(0, done + fresh - 50)
        before = [0] if begin == 0 else [ids[begin - 1]]
        window = torch.tensor([before + ids[begin : done + fresh]])
        with torch.inference_mode():
            logp = torch.log_softmax(reference(window).logits[0].double(), dim=1)[:-1]
        total += float(logp.gather(1, window[0, 1:, None])[-fresh:].sum())
        done += fresh
    assert found == pytest.approx(total, rel=1e-5)


def test_the_same_figures_in_this_process_and_over_http(tasks: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    # What comes beside a request depends on when it arrives: only a batch-invariant model owes both ways the same bits.
    llm = api.LLM("bundled", sequences=8, batch_invariant=True)
    here = evaluate(IsobitLM(llm, quiet=True, max_length=128), tasks)
    with served.listening(served.serving(llm)) as address:
        over_http = simple_evaluate(
            model="local-completions",
            # The harness takes one token off for the answer, and rolls by one less than that.
            model_args={"model": "bundled", "base_url": f"{address}/v1/completions", "max_length": 130},
            tasks=list(toy_tasks.ALL),
            batch_size=4,
            bootstrap_iters=100,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        )
    there = {row.task: row for row in running.read(over_http)}
    assert [row.task for row in here.results] == list(toy_tasks.ALL)
    for row in here.results:
        other = there[row.task]
        assert (row.ids, row.answers) == (other.ids, other.answers)
        assert len(row.metrics) > 0
        for mine, theirs in zip(row.metrics, other.metrics, strict=True):
            assert (mine.name, mine.kind) == (theirs.name, theirs.kind)
            assert (mine.value, mine.items) == (theirs.value, theirs.items)


def test_a_model_against_its_source(
    models: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [
        "eval", str(models / "int4"), "--against", str(models / "source"), "--include-path", str(tasks),
        "--tasks", f"{toy_tasks.CHOICES},{toy_tasks.WRITING}", "--work", str(tmp_path / "work"), "-q",
    ]  # fmt: skip
    assert main([*argv, "--report", str(tmp_path / "r.html")]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert "contexts begin with no begin-of-text token (as the tokenizer does by itself)" in out.out
    assert "source (source)" in out.out and "same answers" in out.out and "lm-evaluation-harness 0.4" in out.out
    page = (tmp_path / "r.html").read_text()
    assert "toy_choices" in page and "isobit eval" in page and page.count("<tr") == 1 + 2 * 3

    # What is done is not done again; no model is loaded for it.
    from isobit.evaluation.tasks import evaluate as evaluating

    monkeypatch.setattr(evaluating, "load_measured", None)
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    (model,) = found["models"]
    assert [row["task"] for row in model["results"]] == [toy_tasks.CHOICES, toy_tasks.WRITING]
    assert len(model["results"][0]["metrics"][0]["items"]) == 14 and model["bos"].startswith("contexts begin with no")
    change = model["changes"][0]["metrics"]["acc"]["change"]["value"]
    both = [one["results"][0]["metrics"][0]["value"] for one in (model, found["source"])]
    assert change == pytest.approx(both[0] - both[1])
    assert 0 <= model["changes"][0]["same answers"] <= 1

    # Other data under the same names is other data.
    data = tasks / f"{toy_tasks.WRITING}.jsonl"
    before = data.read_text()
    try:
        data.write_text(before.replace("alpha", "omega"))
        with pytest.raises(TypeError):  # it would be loaded
            main([*argv, "--json"])
    except AssertionError:
        raise
    finally:
        data.write_text(before)


def test_conversations_by_the_models_template(models: Path, tasks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    folder.mkdir()
    for file in (models / "source").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<me>{% endif %}"
    )
    lm = IsobitLM(api.LLM(folder), quiet=True)
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    assert lm.chat_template(True) and lm.chat_template(False) is None
    assert lm.apply_chat_template(history[:1]) == "<user>Hi</><me>"
    assert lm.apply_chat_template(history, add_generation_prompt=False) == "<user>Hi</><assistant>Well,"
    plain, chat = evaluate(lm, tasks), evaluate(lm, tasks, chat=True)
    assert (plain.template, chat.template) == (None, "default")
    assert [row.metrics[0].items for row in plain.results] != [row.metrics[0].items for row in chat.results]
    with pytest.raises(UsageError, match="has no chat template 'tool'; it has default"):
        evaluate(lm, tasks, chat="tool")
    with pytest.raises(UsageError, match="it has none: leave --apply-chat-template out"):
        evaluate(IsobitLM(api.LLM(models / "source"), "tiny", quiet=True), tasks, chat=True)


def test_examples_and_limits(models: Path, tasks: Path) -> None:
    (tasks / "toy_shots.yaml").write_text(
        (tasks / f"{toy_tasks.CHOICES}.yaml").read_text().replace(toy_tasks.CHOICES, "toy_shots", 1)
        + "fewshot_split: test\n"
    )
    lm = IsobitLM(api.LLM(models / "source"), quiet=True)
    harness = running.Harness(TaskSetup(("toy_shots",), shots=2, limit=5, include=(str(tasks),)), quiet=True)
    (row,) = harness.run(lm, "toy_shots", "cpu").results
    assert (row.shots, row.count, len(row.ids)) == (2, 5, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("toy_nothing",)}, "no such task: toy_nothing"),
        ({"tasks": (toy_tasks.CHOICES,), "include": ("/nowhere",)}, "/nowhere: there is no such folder"),
        ({"tasks": ("toy_broken",)}, r"task 'toy_broken' cannot be run \(FileNotFoundError\)"),
    ],
)
def test_what_is_wrong_with_a_task_is_said_before_a_model_is_loaded(
    settings: dict[str, Any], message: str, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (tasks / f"{toy_tasks.CHOICES}.yaml").read_text().replace(toy_tasks.CHOICES, "toy_broken")
    (tasks / "toy_broken.yaml").write_text(broken)
    with pytest.raises(UsageError, match=message):
        running.Harness(TaskSetup(**{"include": (str(tasks),), **settings}), quiet=True)


def test_the_harness_s_own_command_knows_isobit(models: Path, tasks: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "isobit.cli.harness", "run", "--model", "isobit",
        "--model_args", f"pretrained={models / 'int4'}", "max_length=200",
        "--tasks", toy_tasks.CHOICES, "--include_path", str(tasks), "--output_path", str(tmp_path / "out"),
        "--log_samples",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "toy_choices" in ended.stdout and "acc_norm" in ended.stdout
    (results,) = (tmp_path / "out").rglob("results*.json")
    config = json.loads(results.read_text())["config"]
    assert config["begin_of_text"].startswith("contexts begin with no") and config["tokens_read"] == 200
    command[7] = f"pretrained={models / 'int4'},nonsense=1"
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "isobit-lm-eval: error: model_args: nonsense is not known" in ended.stderr
