"""An invented checkpoint format, one file and one line in a copy of the sources: read, described, planned, loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import linears, quantize_tiny, save_tiny, write
from safetensors.torch import load_file

import isobit
from isobit.formats import pack
from isobit.formats.schemes import scheme

SOURCES = Path(isobit.__file__).parent

# Two codes a byte, the first in the high bits; scales are called steps; config.json has words of its own.
LAYOUT = '''
"""Levels: two codes a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.formats.schemes import WeightSpec

if TYPE_CHECKING:
    from isobit.checkpoint.layouts.reading import LinearWeight, Reader


def _configured(section: dict[str, Any]) -> Quantization:
    group = Group(("Linear",), WeightSpec("int4", "group", section["run"]), None)
    return Quantization((group,), tuple(section["kept"]), "levels", "levels", ignores_parts=True)


def _describe(parts: Parts) -> Described:
    n, half = parts.infos["levels"].shape
    run = 2 * half // parts.infos["steps"].shape[1]
    return Described((n, 2 * half), n * 2 * half, WeightSpec("int4", "group", run))


def _read(reader: Reader) -> LinearWeight:
    import torch

    from isobit.formats import pack

    spec, activations = reader.configured("levels")
    n, half = reader.matrix("levels")
    where = reader.cut("levels", spec, n, 2 * half)
    pairs = reader.take("levels", where.rows, slice(where.columns.start // 2, where.columns.stop // 2))
    codes = torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten(1).to(torch.int8) - 8
    scale = reader.scale("steps", spec, n, 2 * half, where)
    weight = reader.qtensor("levels", spec, where, pack.pack(codes, "int4"), scale)
    return reader.linear(weight, activations, None, n)


LAYOUT = Layout(
    "levels", "levels", ("steps",), lambda infos: "levels" in infos and "steps" in infos, _describe, _read,
    scales=("steps",), marks=("levels",), configs={"levels": _configured},
)
'''

PROGRAM = """
import json, sys
import torch
from isobit import api
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.cli.main import main
from isobit.evaluation.info import describe
from isobit.models.batch import Batch
from isobit.models.planning import plans
from isobit.models.weights import load_model

levels, known, modules = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
ours, theirs = Checkpoint.open(levels), Checkpoint.open(known)
for module in modules:
    one, other = (read_linear(ck, module).weight for ck in (ours, theirs))
    assert one.spec == other.spec and torch.equal(one.dequantize(), other.dequantize()), module
    part = read_linear(ours, module, slice(8, 24), slice(32, 96)).weight
    assert torch.equal(part.dequantize(), other.dequantize()[8:24, 32:96]), module
batch = Batch.of([[3, 1, 4, 1, 5, 9, 2]])
answers = [load_model(folder, dtype="float32").forward(batch) for folder in (levels, known)]
assert torch.equal(*answers) and bool(answers[0].isfinite().all())
found = {}
for name, folder in (("levels", levels), ("known", known)):
    info, (work, ((plan,),)) = describe(folder), plans(folder, targets=("cpu-avx2",))
    found[name] = {
        "quantization": info.quantization, "parameters": info.parameters, "notes": info.notes,
        "schemes": sorted((use.kind, use.scheme, use.modules, use.weights) for use in info.schemes),
        "action": plan.action, "memory": plan.memory.weights, "ops": sorted({str(op.weights) for op, _ in plan.ops}),
    }
found["refused"] = main(["quantize", levels, "--scheme", "int8", "--out", levels + "-out"])
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("model", "heldout", "__pycache__", "cpp", "*.html")
    shutil.copytree(SOURCES, root / "isobit", ignore=leave)
    layouts = root / "isobit" / "checkpoint" / "layouts"
    (layouts / "levels.py").write_text(LAYOUT.lstrip(), encoding="utf-8")
    table = layouts / "table.py"
    text = table.read_text(encoding="utf-8")
    line = "LAYOUTS: tuple[Layout, ...] = (\n"
    assert text.count(line) == 1
    table.write_text(text.replace(line, f"from isobit.checkpoint.layouts import levels\n\n{line}    levels.LAYOUT,\n"))
    return root


def as_levels(known: Path, target: Path) -> list[str]:
    """The same checkpoint in the invented format; returns its quantized modules."""
    tensors, modules = load_file(known / "model.safetensors"), []
    for name in [*tensors]:
        module, _, part = name.rpartition(".")
        if part == "weight_packed":
            modules.append(module)
            k = int(tensors.pop(f"{module}.weight_shape")[1])
            codes = (pack.unpack(tensors.pop(name), "int4", k) + 8).to(torch.uint8)
            tensors[f"{module}.levels"] = codes[:, ::2] << 4 | codes[:, 1::2]
            tensors[f"{module}.steps"] = tensors.pop(f"{module}.weight_scale")
    config = json.loads((known / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "levels", "run": 32, "kept": ["lm_head"]}
    write(target, config, tensors)
    return modules


def test_an_invented_layout_is_read_described_planned_and_loaded(changed: Path, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    quantize_tiny(source, tmp_path / "known", {module: scheme("int4-g32") for module in linears()})
    modules = as_levels(tmp_path / "known", tmp_path / "levels")
    assert modules
    environment = {**os.environ, "PYTHONPATH": str(changed), "OMP_NUM_THREADS": "1"}
    words = [str(tmp_path / "levels"), str(tmp_path / "known"), ",".join(modules)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.partition("FOUND")[2])
    assert found["levels"].pop("quantization") == "levels"
    assert found["known"].pop("quantization") == "compressed-tensors (pack-quantized)"
    assert found["levels"] == found["known"] and any("int4-g32" in use for use in found["levels"]["schemes"])
    assert found["refused"] != 0 and "quantized already (levels)" in done.stderr
    assert not (tmp_path / "levels-out").exists()
