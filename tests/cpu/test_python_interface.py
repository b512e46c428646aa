"""`import isobit`: it works more than once, names stay what they are, and wrong arguments are refused by name."""

from __future__ import annotations

import json
import math
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import isobit
from isobit import api
from isobit.cli import serve
from isobit.errors import LONGEST_MESSAGE, CapacityError, IsobitError, UsageError

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("models") / "source")


@pytest.fixture(scope="module")
def finished(source: Path) -> Path:
    """An output that `overwrite=True` would replace."""
    out = source.parent / "finished"
    isobit.quantize(source, out, "int8", progress=False)
    return out


@pytest.fixture(scope="module")
def model(source: Path) -> api.Model:
    return isobit.load(source)


def test_the_readmes_example_runs_twice_in_one_process(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert "isobit.quantize(" in block and "isobit.evaluate(" in block
    evaluate = 'isobit.evaluate("small-int4", against="bundled")'
    assert evaluate in block
    once = block.replace(evaluate, evaluate[:-1] + ", tokens=1500)")  # a minute less
    again = once.replace('"small-int4", "int4"', '"again", "int8"')
    twice = f"{once}\nimport isobit.api\nfrom isobit import *\n{again}"
    program = twice + "\nprint(info('bundled').parameters, isobit.info is info, callable(isobit.evaluate))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("KL mean (nats)") == 2 and done.stdout.count("top-1 agreement") == 2
    assert done.stdout.endswith("11474560 True True\n")
    assert max(map(len, done.stdout.splitlines())) < 200


def test_no_module_has_a_public_name() -> None:
    modules = {found.name for found in pkgutil.iter_modules(isobit.__path__)}
    assert {"api", "quantizer", "evaluation"} <= modules
    assert not modules & set(isobit.__all__)
    api_names = {name for name, value in vars(api).items() if callable(value) and not name.startswith("_")}
    own = {name for name in api_names if getattr(api, name).__module__.startswith("isobit.api.")}
    assert {"plan", "quantize", "load", "LLM", "evaluate", "find"} <= own
    assert not own & (modules | {found.name for found in pkgutil.iter_modules(api.__path__)})
    for name in isobit.__all__:
        assert name in dir(isobit)
        assert isinstance(getattr(isobit, name), str) or callable(getattr(isobit, name))


def test_reports_are_short_to_look_at(source: Path, finished: Path, model: api.Model, tmp_path: Path) -> None:
    report = isobit.quantize(source, tmp_path / "out", "int8", progress=False)
    found = isobit.evaluate(finished, against=source, tokens=300, ctx=64)
    for one in (report, isobit.info(finished), found, model):
        assert len(repr(one)) < 4000
    shown = str(found).splitlines()
    assert shown[0].startswith("finished on ") and all(len(line) < 160 for line in shown)
    for name in ("perplexity", "bits per byte", "KL mean (nats)", "top-1 agreement"):
        assert name in str(found)


NAN, HUGE = math.nan, 10**400

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("quantize", {"overwrite": "no"}, "overwrite must be True or False, not 'no'"),
    ("quantize", {"overwrite": 1}, "overwrite must be True or False, not 1"),
    ("quantize", {"resume": None}, "resume must be True or False"),
    ("quantize", {"progress": "yes"}, "progress must be True or False"),
    ("quantize", {"allow_mixed_fused": "no"}, "allow_mixed_fused must be True or False"),
    ("predict", {"allow_mixed_fused": 1}, "allow_mixed_fused must be True or False"),
    ("quantize", {"max_shard_bytes": -1}, "max_shard_bytes must be a whole number of at least 1, not -1"),
    ("quantize", {"max_shard_bytes": True}, "max_shard_bytes must be"),
    ("quantize", {"max_shard_bytes": 2**63}, "max_shard_bytes must be a whole number from 1 to 9223372036854775807"),
    ("quantize", {"max_shard_bytes": 5e9}, "max_shard_bytes must be"),
    ("quantize", {"threads": 1.5}, "threads must be a whole number from 1 to 4096, not 1.5"),
    ("quantize", {"threads": 0}, "threads must be"),
    ("quantize", {"threads": HUGE}, "threads must be"),
    ("quantize", {"scheme": None}, "scheme must be text"),
    ("quantize", {"scheme": 4}, "scheme must be text"),
    ("quantize", {"rules": "down_proj=keep"}, "rules must be a list of pairs"),
    ("quantize", {"rules": ["down_proj=keep"]}, "rules[0] must be a pair"),
    ("quantize", {"rules": [("a", None)]}, "rules[0][1] must be text"),
    ("quantize", {"rules": 3}, "rules must be a list of pairs"),
    ("quantize", {"rules": {"a": "keep"}}, "rules must be a list of pairs"),
    ("quantize", {"rules": np.array(3)}, "rules must be a list of pairs"),
    ("quantize", {"rules": {("a", "keep")}}, "rules must be a list of pairs"),
    ("quantize", {"search": "best"}, "search must be one of 'absmax', 'mse', not 'best'"),
    ("quantize", {"search": True}, "search must be one of"),
    ("quantize", {"calibration": 3}, "calibration must be a path"),
    ("quantize", {"out": b"folder"}, "out must be a path"),
    ("quantize", {"out": ""}, "out must be a path"),
    ("quantize", {"out": "a\0b"}, "out: 'a\\x00b' holds a NUL"),
    ("quantize", {"out": "x" * 300}, "is too long for a file's name"),
    ("quantize", {"out": "\ud800"}, "letters that no file's name can have"),
    ("quantize", {"model": 3}, "model must be a path"),
    ("quantize", {"model": ""}, "model must be a path"),
    ("quantize", {"model": None}, "model must be a path"),
    ("quantize", {"revision": "main"}, "only models of the Hugging Face hub have revisions"),
    ("quantize", {"revision": 7}, "revision must be text"),
    ("predict", {"scheme": ["int4"]}, "scheme must be text"),
    ("predict", {"max_shard_bytes": "5GB"}, "max_shard_bytes must be"),
    ("predict", {"calibration": False}, "calibration must be a path"),
    ("load", {"dtype": "int8"}, "dtype must be one of 'float32', 'bfloat16', 'float16', not 'int8'"),
    ("load", {"dtype": np.float32}, "dtype must be one of"),
    ("load", {"device": "tpu"}, "device must be one of 'cpu', 'cuda'"),
    ("load", {"device": None}, "device must be one of"),
    ("load", {"model": ["a"]}, "model must be a path"),
    ("load", {"revision": ""}, "revision must be text"),
    ("load", {"model": "bundled", "revision": "main"}, "revision 'main': bundled comes with isobit"),
    ("evaluate", {"seed": "x"}, "seed must be a whole number of at least 0"),
    ("evaluate", {"seed": -1}, "seed must be"),
    ("evaluate", {"seed": NAN}, "seed must be"),
    ("evaluate", {"seed": HUGE}, "seed must be"),
    ("evaluate", {"tokens": True}, "tokens must be"),
    ("evaluate", {"tokens": 10.0}, "tokens must be"),
    ("evaluate", {"tokens": -3}, "-3 tokens to score"),
    ("evaluate", {"ctx": 0}, "a context of 0 tokens scores nothing"),
    ("evaluate", {"ctx": -5}, "ctx must be"),
    ("evaluate", {"ctx": "512"}, "ctx must be"),
    ("evaluate", {"stride": 0}, "stride must be"),
    ("evaluate", {"text": 3}, "text must be a path"),
    ("evaluate", {"against": 3}, "against must be a path"),
    ("evaluate", {"against": ""}, "against must be a path"),
    ("evaluate", {"progress": True}, "progress must be a function"),
    ("evaluate", {"command": b"isobit eval"}, "command must be text"),
    ("info", {"model": 1.5}, "model must be a path"),
    ("info", {"model": "x" * 9_000_000}, "too long for a file's name"),
    ("info", {"revision": "main"}, "is on this machine"),
    ("plan", {"batch": 0}, "batch must be"),
    ("plan", {"batch": True}, "batch must be"),
    ("plan", {"batch": 10**20}, "batch must be a whole number from 1 to 1073741824, not 100000000000000000000"),
    ("plan", {"context": 1.0}, "context must be"),
    ("plan", {"targets": 3}, "targets must be a list of texts"),
    ("plan", {"targets": torch.tensor(3)}, "targets must be a list of texts"),
    ("plan", {"schemes": [None]}, "schemes[0] must be text"),
    ("plan", {"kv": 8}, "kv must be text"),
    ("plan", {"allow_relaxed": "no"}, "allow_relaxed must be True or False"),
    ("plan", {"revision": "main"}, "is on this machine"),
]


@pytest.mark.parametrize(("function", "given", "message"), WRONG, ids=lambda value: None)
def test_wrong_arguments_are_refused_by_name_before_anything_is_done(
    source: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    given: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in finished.iterdir()}
    arguments: dict[str, Any] = {"model": source, **({"out": finished} if function == "quantize" else {}), **given}
    with pytest.raises(UsageError) as error:
        getattr(api, function)(**arguments)
    assert message in str(error.value)
    assert len(str(error.value)) <= LONGEST_MESSAGE
    assert {file.name: file.stat().st_mtime_ns for file in finished.iterdir()} == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (3, {}, "prompt must be text or a list of token ids"),
        (None, {}, "prompt must be"),
        (b"bytes", {}, "prompt must be"),
        (bytearray(b"bytes"), {}, "prompt must be"),
        ({5, 6}, {}, "prompt must be"),
        (np.array(3), {}, "prompt must be"),
        ([1, 2.5], {}, "prompt[1] must be a whole number"),
        ([1, "2"], {}, "prompt[1] must be"),
        ([True], {}, "prompt[0] must be"),
        ([-1], {}, "prompt[0] must be"),
        ([5000], {}, "5000"),
        ("", {}, "empty"),
        ("a", {"temperature": NAN}, "temperature must be a number"),
        ("a", {"temperature": "hot"}, "temperature must be a number"),
        ("a", {"temperature": True}, "temperature must be a number"),
        ("a", {"top_p": math.inf}, "top_p must be a number"),
        ("a", {"top_k": 1.0}, "top_k must be an integer"),
        ("a", {"max_tokens": 0}, "max_tokens must be an integer"),
        ("a", {"max_tokens": HUGE}, "max_tokens must be an integer"),
        ("a", {"seed": "x"}, "seed must be an integer"),
        ("a", {"stop": 3}, "stop must be texts"),
        ("a", {"stop": [""]}, "stop must be texts"),
        ("a", {"ignore_eos": "no"}, "ignore_eos must be True or False"),
        ("a", {"temprature": 1.0}, "unknown sampling option temprature"),
    ],
)
def test_prompts_and_sampling_options_that_cannot_be_used(
    model: api.Model, prompt: object, options: dict[str, Any], message: str
) -> None:
    for call in (model.generate, model.stream):
        with pytest.raises(UsageError) as error:
            call(prompt, **options)  # type: ignore[operator]
        assert message in str(error.value)


def test_many_prompts_at_once(source: Path, model: api.Model) -> None:
    llm = isobit.LLM(source, cache_tokens=4096, sequences=2)
    params = isobit.SamplingParams(max_tokens=5)
    prompts = ["def", [5, 6, 7], "import"]
    answers = llm.generate(prompts, params)
    assert [one.token_ids for one in answers] == [model.generate(one, max_tokens=5).token_ids for one in prompts]
    assert llm.engine.pool.count == 64


@pytest.mark.parametrize(("asked", "got"), [(100, 64), (10, 64), (128, 128)])
def test_a_cache_of_other_than_whole_blocks_is_said(source: Path, asked: int, got: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llm = isobit.LLM(source, cache_tokens=asked)
    said = [note for note in llm.notes if "whole blocks of 64" in note]
    assert llm.engine.longest == got and [str(one.message) for one in caught if "blocks" in str(one.message)] == said
    rounded = f"a cache of {asked} tokens was asked for, and it has {got}: whole blocks of 64"
    assert said == ([] if asked == got else [rounded])
    limit = f"prompt and answer have {got} tokens at most, not {llm.context_length}: the cache holds no more"
    assert serve._shortened(llm) == ((limit,) if got < llm.context_length else ())
    assert serve._shortened(isobit.LLM(source)) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequences": 0}, "sequences must be a whole number from 1"),
        ({"sequences": 1.5}, "sequences must be a whole number from 1"),
        ({"cache_tokens": 0}, "cache_tokens must be a whole number of at least 1"),
        ({"prefix_cache": "no"}, "prefix_cache must be True or False"),
        ({"device": "tpu"}, "device must be"),
        ({"dtype": "int8"}, "dtype must be"),
    ],
)
def test_engines_that_cannot_be_made(source: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        isobit.LLM(source, **options)


def test_a_cache_that_memory_does_not_hold_is_refused_at_once(source: Path) -> None:
    with pytest.raises(CapacityError, match="key-value cache of .* needs .* GiB, which cannot be had"):
        isobit.LLM(source, cache_tokens=1 << 56)


def test_what_means_the_same_is_taken(source: Path, tmp_path: Path) -> None:
    rules = (("down_proj", "keep") for _ in range(1))
    numbers: dict[str, Any] = {"threads": np.int64(1), "max_shard_bytes": 10**9}
    report = isobit.quantize(str(source), str(tmp_path / "out"), "int8", rules=rules, progress=False, **numbers)
    assert sum(module.quantized for module in report.modules) == 2 * 6
    model = isobit.load(tmp_path / "out", dtype="float32", device="cpu")
    ids = np.array([5, 6, 7])
    assert model.generate(ids, max_tokens=3).token_ids == model.generate([5, 6, 7], max_tokens=3).token_ids
    config = json.loads((source / "config.json").read_text())
    work, plans = isobit.plan(config, targets="sm_86", schemes=["int8", "fp8"])
    odd: dict[str, Any] = {"tokens": np.int64(64), "ctx": torch.tensor(16), "seed": torch.tensor(3)}
    plain = isobit.evaluate(tmp_path / "out", tokens=64, ctx=16, seed=3)
    assert str(isobit.evaluate(tmp_path / "out", **odd)) == str(plain)
    assert work.parameters > 0 and [len(row) for row in plans] == [2]


def test_every_command_that_takes_a_model_finds_it_through_the_interface() -> None:
    """A check that stands in one place: no command resolves a model by itself."""
    for file in (Path(isobit.__file__).parent / "cli").glob("*.py"):
        assert "checkpoint.source" not in file.read_text(), file.name
    with pytest.raises(IsobitError, match="there is no folder"):
        api.find("no such model")
