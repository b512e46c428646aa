"""`isobit plan` and `isobit doctor`: instant, without torch, with figures that add up and errors that help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import isobit
from isobit.cli import doctor
from isobit.cli.main import main
from isobit.errors import IsobitError, ModelError, SourceError, UsageError
from isobit.kernels.status import CpuKernels
from isobit.legalize import text
from isobit.legalize.advice import choose
from isobit.legalize.ops import Lowering
from isobit.legalize.plan import Plan
from isobit.models.planning import plans
from isobit.targets.detect import Machine
from isobit.targets.recorded import recorded_steps

# DeepSeek-LLM-7B, whose owner has an RTX A6000.
DEEPSEEK: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 102400,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
A6000 = ("fp8", "fp8-e5m2", "f16", "int8", "int4")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK))
    return path


def one(target: str, scheme: str, **options: Any) -> Plan:
    _, found = plans(DEEPSEEK, targets=[target], scheme_names=[scheme], **options)
    return found[0][0]


def test_the_a6000_question(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--target", "a6000", "--scheme", ",".join(A6000), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["model"]["parameters"] == 6_910_365_696  # as published: 7B
    actions = {plan["scheme"]: plan["action"] for plan in data["plans"]}
    assert actions == {
        "fp8": "legalized",
        "fp8-e5m2": "legalized",
        "f16": "native",
        "int8": "native",
        "int4": "legalized",
    }
    assert all(plan["memory"]["fits"] and plan["speed"]["decode_tokens_per_second"] > 20 for plan in data["plans"])
    assert main(["plan", str(config), "--target", "a6000", "--scheme", ",".join(A6000)]) == 0
    shown = capsys.readouterr().out
    assert "e4m3 -> f16 in registers" in shown and "e5m2 -> f16 in registers" in shown
    assert "sm_86 has no matrix unit for e4m3 x e4m3" in shown and "Use int8" in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize("others", ["mxfp8", "mxfp8,w4a8"])
def test_beside_what_is_refused_stands_what_keeps_its_weights(
    config: Path, others: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), "--target", "sm_75", "--scheme", f"{others},mxfp4,mxfp4-w16"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "instead: mxfp4-w16" in shown and "mxfp4 (use mxfp4-w16)" in shown
    assert "Use mxfp4-w16: " in shown and "loses something" in shown


@pytest.mark.parametrize("target", ["sm_75", "a100", "gfx942"])
def test_nvfp4_runs_where_two_bytes_hold_a_code_times_its_scale(
    config: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), "--target", target, "--scheme", "nvfp4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["action"] == "legalized"


def test_it_needs_no_torch_and_no_heavy_package(config: Path) -> None:
    code = (
        "import sys; from isobit.cli.main import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'triton', 'numpy', 'huggingface_hub', 'transformers'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    words = ["plan", str(config), "--target", "all"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RTX A6000" in done.stdout and "MI300X" in done.stdout


@pytest.mark.parametrize(
    "words", [["-v"], ["--batch", "8"], ["--context", "512"], ["--allow", "relaxed"], ["--kv", "fp8"]]
)
def test_every_option_answers_in_lines_that_fit(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["plan", str(config), "--target", "sm_90,gfx90a", "--scheme", "all", *words]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_fast_machines_have_their_speed_in_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {**DEEPSEEK, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**small, "num_key_value_heads": 2}))
    assert main(["plan", str(path), "--target", "sm_90,gfx942", "--scheme", "fp8,int4"]) == 0
    out = capsys.readouterr().out
    speeds = re.findall(r"about (\S+) tokens/s", out)
    assert len(speeds) == 2 and all(speed.isdigit() and int(speed) >= 1000 for speed in speeds), out
    assert all(f" {speed} " in f"{out.split('Figures')[0]} ".replace("\n", " ") for speed in speeds), out


@pytest.mark.parametrize("names", ["", " , "])
def test_no_scheme_at_all_is_no_wish_for_all(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "bundled", "--target", "sm_86", "--scheme", names]) == 2
    said = capsys.readouterr().err
    assert "--scheme names no scheme: say all, or some of" in said and "int4" in said


# ---------------------------------------------------------------------- figures


def test_weights_are_counted_tensor_by_tensor() -> None:
    linear = 30 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    outputs = 30 * (4 * 4096 + 2 * 11008 + 4096)
    kept = 2 * (2 * 102400 * 4096 + (2 * 30 + 1) * 4096)
    assert one("a6000", "f16").memory.weights == 2 * linear + kept
    assert one("a6000", "fp8").memory.weights == linear + 2 * outputs + kept
    assert one("a6000", "int4").memory.weights == linear // 2 + 2 * linear // 128 + 16 * 30 * 7 + kept


def test_the_cache_and_what_fits() -> None:
    plan = one("a6000", "int8", batch=4, context=2048)
    memory = plan.memory
    assert memory.kv_per_token == 2 * 30 * 32 * 128 * 2 and memory.kv == 4 * 2048 * memory.kv_per_token
    assert memory.recorded > 3 * (1 << 20) * recorded_steps(4) and one("cpu-avx2", "int8").memory.recorded == 0
    assert memory.total == memory.weights + memory.kv + memory.activations + memory.recorded + memory.runtime
    # a step has no more tokens for having more sequences
    assert one("a6000", "int8", batch=8, context=2048).memory.activations == memory.activations
    most = memory.largest_batch
    assert one("a6000", "int8", batch=most, context=2048).memory.fits
    assert not one("a6000", "int8", batch=most + 1, context=2048).memory.fits
    small = one("RTX 3080", "int8", batch=2)
    assert not small.memory.fits and 0 < small.memory.longest_context < 4096
    assert one("RTX 3080", "int8", batch=2, context=small.memory.longest_context).memory.fits
    assert one("a6000", "int8", kv="fp8").memory.kv_per_token == 2 * 30 * 32 * (128 + 4)  # with a scale for each head
    grouped = {"mxfp8": 128 + 4, "mxfp4": 64 + 4, "nvfp4": 64 + 8 + 4}
    for name, bytes_of_a_head in grouped.items():
        plans = {kv: one("laptop", "int8", kv=kv) for kv in (name, "int8")}
        assert plans[name].memory.kv_per_token == 2 * 30 * 32 * bytes_of_a_head
        (lowering,) = (decision for op, decision in plans[name].ops if op.kind == "attention")
        assert isinstance(lowering, Lowering) and lowering.kernels == ("cpu attention",) and name in lowering.how
        costs = [plans[kv].cost for kv in (name, "int8")]
        assert costs[0] is not None and costs[1] is not None
        assert (costs[0].step_bytes < costs[1].step_bytes) == (bytes_of_a_head < 132)


def test_cpus_keep_the_cache_in_float32() -> None:
    assert one("laptop", "int8").memory.kv_per_token == 2 * one("a6000", "int8").memory.kv_per_token


def test_speed_follows_bytes_and_operations() -> None:
    for target in ("h200", "a6000", "laptop"):
        fast, slow = one(target, "int8").cost, one(target, "bf16").cost
        assert fast is not None and slow is not None
        assert fast.step_bytes < slow.step_bytes and fast.decode > slow.decode and fast.sources
    h200, a6000 = one("h200", "fp8").cost, one("a6000", "fp8").cost
    assert h200 is not None and a6000 is not None and not a6000.measured
    assert h200.decode > a6000.decode and h200.prefill > a6000.prefill


# ---------------------------------------------------------------------- words


def test_a_cache_that_no_kernel_reads_is_refused_but_sized() -> None:
    assert one("h200", "fp8", kv="fp8").action == "native" and one("laptop", "int8", kv="bf16").cost is not None
    assert one("a6000", "int8", kv="e5m2").cost is not None
    plan = one("h200", "fp8", kv="int4")
    assert plan.action == "refused" and plan.cost is None
    assert any("no attention kernel" in reason for reason in plan.reasons)
    said = " ".join(one("cpu-avx2", "int8", kv="int4").reasons)
    assert "dtype (f32), or as bf16, f16, fp8, " in said and "nvfp4" in said


def test_nothing_that_fits_says_what_is_lacking() -> None:
    _, found = plans(DEEPSEEK | {"num_hidden_layers": 300}, targets=["RTX 3060"], scheme_names=["int8", "int4"])
    assert choose(found[0]) is None
    assert "Nothing fits" in "\n".join(text.describe(found[0]))


def test_a_quantized_checkpoint_is_planned_as_it_is() -> None:
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True},
    }
    section = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}
    config = DEEPSEEK | {"quantization_config": section | {"ignore": ["lm_head"]}}
    _, found = plans(config, targets=["a6000"])
    (plan,) = found[0]
    assert (plan.scheme, plan.action) == ("as stored", "legalized")
    assert plan.memory.weights == one("a6000", "fp8").memory.weights
    assert "Use as stored" in "\n".join(text.describe(found[0]))


@pytest.mark.parametrize(
    ("change", "options", "kind", "message"),
    [
        ({"architectures": ["InventedForCausalLM"]}, {}, ModelError, "not implemented"),
        ({"architectures": None, "model_type": None}, {}, ModelError, "nothing says what this is"),
        ({"hidden_size": "big"}, {}, ModelError, "hidden_size"),
        ({"vocab_size": 10**18}, {}, ModelError, "vocab_size"),
        ({"num_hidden_layers": None}, {}, ModelError, "num_hidden_layers is missing"),
        ({"torch_dtype": "float8"}, {}, ModelError, "dtype"),
        ({}, {"targets": ["gfx1030"]}, IsobitError, "RDNA 2"),
        ({}, {"targets": []}, UsageError, "at least one target"),
        ({}, {"scheme_names": ["int5"]}, IsobitError, "Did you mean"),
        ({}, {"kv": "fp5"}, UsageError, "unknown format of a key-value cache 'fp5'; there are auto, .*fp8,.*nvfp4"),
        ({}, {"kv": "fp4"}, UsageError, "cache 'fp4'; there are .*mxfp4, nvfp4"),  # of either
        ({}, {"batch": 0}, UsageError, "above 0"),
        ({}, {"batch": 10**400}, UsageError, "batch up to"),
        ({}, {"context": 10**400}, UsageError, "longest is 4096"),
        ({}, {"context": 10**6}, UsageError, "longest is 4096"),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, IsobitError, "gptq"),
    ],
)
def test_what_cannot_be_planned_is_explained(
    change: dict[str, Any], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        plans(DEEPSEEK | change, **({"targets": ["a6000"]} | options))


def test_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        plans(tmp_path / "config.json", targets=["a6000"])
    (tmp_path / "config.json").write_text("[1, 2")
    for path in (tmp_path / "config.json", tmp_path):
        with pytest.raises(IsobitError, match="JSON"):
            plans(path, targets=["a6000"])


# ---------------------------------------------------------------------- doctor


def test_doctor_says_what_each_scheme_does_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["targets"][-1]["target"].startswith("cpu-")
    assert data["targets"][-1]["schemes"]["fp8"]["action"] == "legalized"
    assert main(["doctor"]) == 0
    assert "target cpu-" in capsys.readouterr().out


def test_doctor_says_what_is_missing() -> None:
    gpu = ("NVIDIA RTX A6000, 8.6, 49140 MiB, 580.1", "NVIDIA Ancient, 3.5, 2000 MiB, 470.1")
    packages = (("torch", "2.13.0+cpu"), ("triton", None))
    bare = Machine("Linux", "3.11", "a CPU", ("avx2", "fma", "f16c"), 4, 1 << 34, 1 << 34, None, gpu, packages)
    broken = CpuKernels("not built", "make them", None, (), (), (), None, None, 4, "the affinity mask", None)
    said = "\n".join(doctor.advice(bare, broken))
    for word in ("CPU kernels: make them", "Triton", "build for CPUs only", "NVIDIA Ancient"):
        assert word in said
    fine = replace(broken, problem=None, remedy=None, left_out=("avx512", "avx2"))
    said = "\n".join(doctor.advice(bare, fine))
    assert "CPU kernels for avx2, which" in said and "make them" not in said


def test_what_does_not_fit_never_lacks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for memory, options in (("640MiB", []), ("1MiB", ["--target", "all"])):
        assert (
            main(["plan", "bundled", "--scheme", "int4", "--memory", memory, *(options or ["--target", "h100"])]) == 0
        )
        out = capsys.readouterr().out
        assert "GiB" in out and "lacks 0.0" not in out and "-0 GiB" not in out


# ---------------------------------------------------------------------- --memory


def test_memory_without_its_unit_is_refused_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["plan", "bundled"], ["serve", "bundled"], ["bench", "bundled"], ["generate", "bundled", "a"],
                    ["chat", "bundled"], ["eval", "bundled"], ["certify", "bundled"]):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--memory", "20"])
        assert stopped.value.code == 2
        assert "like 20GiB, of 1MiB at least, not 20 bytes (a number without a unit" in capsys.readouterr().err
    for few in (20, "1023KiB"):
        with pytest.raises(UsageError, match="memory must be a size like 20GiB, of 1MiB at least, not"):
            isobit.plan("bundled", targets=["a6000"], memory=few)


def test_a_part_of_a_machine_is_said_beside_the_whole_and_more_than_that_is_not_planned_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(memory: str, targets: str) -> str:
        assert main(["plan", "bundled", "--scheme", "int4", "--target", targets, "--memory", memory]) == 0
        return " ".join(capsys.readouterr().out.split())

    few = said("20GiB", "a6000")
    assert "RTX A6000 (sm_86, Ampere), 20.0 of its 48.0 GiB, 768 GB/s" in few and "were allowed" not in few
    much = said("60GiB", "a6000")
    assert "60.0 GiB were allowed, and RTX A6000 has 48.0 GiB: this is planned with those" in much
    assert "Ampere), 48.0 GiB, 768" in much
    many = said("60GiB", "a6000,t4,h200")
    assert "60.0 GiB were allowed; planned with what they have, which is less: RTX A6000, T4." in many
    _, (whole, capped) = plans(DEEPSEEK, targets=["a6000", "t4"], scheme_names=["int4"], memory=1 << 40)
    alone = [plans(DEEPSEEK, targets=[name], scheme_names=["int4"])[1][0][0].memory for name in ("a6000", "t4")]
    assert [whole[0].memory, capped[0].memory] == alone


def test_refused_plans_have_no_notes_on_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    _, ((refused, runs),) = plans(DEEPSEEK, targets=["v100"], scheme_names=["w4a8", "int3"])
    assert refused.action == "refused" and any("no bf16 arithmetic" in note for note in runs.notes)
    assert refused.notes == runs.target.notes and len(runs.notes) > len(refused.notes)
    lines = "\n".join(text.describe([refused, runs]))
    assert "  - int3: groups of 40" in lines and "int3: int3" not in lines
