"""`--device cuda`: whole models on the GPU kernels, in Triton's interpreter; and what is said where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_model

from isobit.errors import Unsupported, UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.kernels.gpu.machine import Machine
from isobit.models.place import Place, place
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.targets.table import TARGETS

# How far logits may be apart: float16 activations; and sums in another order, which move some values across a midpoint
# where they are rounded.
APART = {"int4": 5e-3, "fp8": 2.5e-2}


@pytest.mark.slow
def test_whole_models_run_on_the_gpu_kernels(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    source, folder = save_model(tmp_path / "tiny"), tmp_path / "checkpoints"
    folder.mkdir()
    for name in APART:
        quantize(source, folder / name, Policy(scheme(name)), progress=False)
    program = Path(__file__).with_name("interpreter_decoder.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(program), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for name, *_ in results} == set(APART)
    for name, apart, kernels in results:
        assert kernels == ["triton"] and apart < APART[name], (name, apart)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_absence_is_said(tmp_path: Path) -> None:
    source = save_model(tmp_path / "tiny")
    with pytest.raises(Unsupported, match="running on a GPU"):
        load_model(source, device="cuda")


def test_a_place_is_a_known_device() -> None:
    assert place() == Place() and place().options == {} and place().default_dtype("bfloat16") == "float32"
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        place("tpu")
    with pytest.raises(UsageError, match="add --device cuda"):
        place("cpu", "sm_86")
    with pytest.raises(UsageError, match="no GPU"):
        place("cuda", "cpu-avx2")


@pytest.mark.parametrize(
    ("target", "stored", "dtype"),
    [("sm_90", "bfloat16", "bfloat16"), ("sm_75", "bfloat16", "float16"), ("sm_86", "float32", "bfloat16"),
     ("sm_86", "float16", "float16")],
)  # fmt: skip
def test_the_dtype_of_activations_on_a_gpu(target: str, stored: str, dtype: str) -> None:
    assert Place("cuda", torch.device("cpu"), Machine.imagined(TARGETS[target])).default_dtype(stored) == dtype
