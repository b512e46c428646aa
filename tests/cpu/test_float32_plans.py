"""Checkpoints in float32: a CPU runs them as they lie there, and plans, refusals and `isobit serve` count that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import make_model, save

import isobit
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CapacityError
from isobit.evaluation import benched
from isobit.evaluation.bench import Case
from isobit.formats.caches import cache_format
from isobit.formats.rules import Policy
from isobit.formats.schemes import SCHEMES
from isobit.kernels.cpu import library
from isobit.legalize.memory import weight_bytes
from isobit.legalize.plan import Request, plan
from isobit.legalize.workload import Workload, as_loaded
from isobit.models.planning import described, locate
from isobit.models.room import room
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.server import run as running
from isobit.targets.here import here
from isobit.targets.table import lookup

CPU = lookup("cpu-avx2")[0]
FAMILIES = ("LlamaForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV2ForCausalLM")


def in_files(folder: Path) -> int:
    return sum(info.nbytes for info in Checkpoint.open(folder).tensors.values())


def of(folder: Path) -> Workload:
    return described(*locate(folder))


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same model in float32 and in bfloat16."""
    folder, model = tmp_path_factory.mktemp("float32"), make_model(request.param)
    wide = save(model, folder / "wide", torch.float32)
    return wide, save(model, folder / "narrow", torch.bfloat16)


def test_the_bytes_are_those_of_the_files(both: tuple[Path, Path]) -> None:
    wide, narrow = of(both[0]), of(both[1])
    assert wide.in_float32 and not narrow.in_float32
    assert as_loaded(wide, CPU) is None and as_loaded(narrow, CPU) == SCHEMES["bf16"]
    for work, folder in ((wide, both[0]), (narrow, both[1])):
        assert weight_bytes(work, as_loaded(work, CPU)) == in_files(folder)
    # MLA's matrix of keys and values, of which kernels keep a half twice: numbers besides, float32 like all others.
    for scheme in (None, SCHEMES["bf16"]):
        ratio = 2 if scheme is None else 1
        assert weight_bytes(wide, scheme, CPU) == ratio * weight_bytes(narrow, SCHEMES["bf16"], CPU)
    for name, on in (("a6000", "bf16"), ("T4", "f16")):  # GPUs have it in 16 bits
        target, board = lookup(name)
        row = as_loaded(wide, target)
        assert row is not None and row.name == on and board is not None
        found, other = (plan(work, row, target, board, Request(64)) for work in (wide, narrow))
        assert found.memory == other.memory and found.cost == other.cost


def test_what_is_loaded_is_what_was_planned(both: tuple[Path, Path]) -> None:
    if library.problem() is not None:
        pytest.skip("without CPU kernels small models are kept as numbers in the dtype of activations")
    for folder, dtype in zip(both, (torch.float32, torch.bfloat16), strict=True):
        linears = dict(load_model(folder).linears())
        assert {linear.weight.dtype for linear in linears.values()} == {dtype}
        target, board = here()[0]
        found = plan(of(folder), as_loaded(of(folder), target), target, board, Request(64))
        named = {op.w for op, _ in found.ops if op.kind != "attention"}
        assert named == {str(dtype).removeprefix("torch.")}


def test_a_refusal_by_memory_and_a_bench_count_float32(both: tuple[Path, Path]) -> None:
    rooms, steps = [], []
    for folder in both:
        tiny.save_tokenizer(folder)
        found = room(folder, gpu=False, free=1 << 40, given=1 << 30, cache=cache_format("auto"), sequences=1)
        assert found is not None
        rooms.append(found.memory)
        planner = benched._planner(folder, load_model(folder), cache_format("auto"))
        cost = planner(Case(1, 8, 8), "decode").cost
        assert cost is not None
        attended = sum(
            op.count * 4 * op.kv_heads * sum(op.kept or (op.k, op.k)) * planner(Case(1, 8, 8), "decode").request.context
            for op, _ in planner(Case(1, 8, 8), "decode").ops if op.kind == "attention"
        )  # fmt: skip
        steps.append(cost.step_bytes - attended)
    assert rooms[0].weights == 2 * rooms[1].weights and rooms[0].kv == rooms[1].kv
    assert steps[0] == 2 * steps[1] > 0
    few = rooms[0].runtime + rooms[0].weights
    with pytest.raises(CapacityError, match="does not fit: weights") as error:
        isobit.load(both[0], memory=few)
    size = rooms[0].weights
    shown = f"{size / 2**20:.4g} MiB" if size >= 1 << 20 else f"{size / 1024:.4g} KiB"
    assert f"weights {shown}," in str(error.value)


def test_serve_says_what_runs(both: tuple[Path, Path]) -> None:
    wide, narrow = (running.planned(folder, "cpu") for folder in both)
    assert [one["scheme"] for one in wide["plan"]] == ["as stored"]
    assert [one["scheme"] for one in narrow["plan"]] == ["bf16"]
    assert wide["plan"][0]["memory"]["weights"] == 2 * narrow["plan"][0]["memory"]["weights"]
    said = " ".join(" ".join(wide["text"]).split())
    assert "is what the checkpoint holds" in said and "bf16" not in said


def test_what_a_scheme_keeps_stays_float32(tmp_path: Path) -> None:
    source, out = save(make_model("LlamaForCausalLM"), tmp_path / "source", torch.float32), tmp_path / "int8"
    quantize(source, out, Policy(SCHEMES["int8"]), search="absmax", progress=False)
    work = of(out)
    assert {info.dtype for name, info in Checkpoint.open(out).tensors.items() if "embed" in name} == {"F32"}
    planned = weight_bytes(of(source), SCHEMES["int8"], CPU)
    biases = [one for one in work.tensors if one.part == "bias"]
    beside = 2 * sum(one.count * one.shape[0] for one in biases)  # of quantized linears, which plans have in 16 bits
    assert planned == weight_bytes(work, None, CPU) + beside  # before and after
    held = (work.vocab * work.hidden) * (1 if work.tied else 2)
    half = weight_bytes(work, None, lookup("a6000")[0])
    assert weight_bytes(work, None, CPU) - half >= 2 * held


def test_tensors_say_it_before_the_configuration(tmp_path: Path) -> None:
    folder = save(make_model("LlamaForCausalLM"), tmp_path / "model", torch.float32)
    wide = weight_bytes(of(folder), None, CPU)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))  # as old files are
    assert of(folder).dtype == "bfloat16" and weight_bytes(of(folder), None, CPU) == wide == in_files(folder)
    assert as_loaded(of(folder), CPU) is None
    alone = tmp_path / "config.json"
    alone.write_text(json.dumps(config | {"dtype": "float32"}))  # where there are no tensors
    assert weight_bytes(of(alone), None, CPU) == wide
    narrow = tiny.save_model(tmp_path / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))  # and does not hold it
    assert not of(narrow).in_float32 and weight_bytes(of(narrow), as_loaded(of(narrow), CPU), CPU) == in_files(narrow)
