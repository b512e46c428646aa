"""What commands and the server say: once, of what was run, and where the fault is."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from families import make_model, save
from served import bundled, client, serving
from tiny import save_model

import isobit
from isobit.checkpoint.engines import DIFFERS, GARBAGE, LOADS, REFUSES, RUN, SOME, answers
from isobit.cli import failures, serve
from isobit.cli import main as command
from isobit.formats.schemes import scheme
from isobit.models.archs import ARCHS, WITHIN
from isobit.models.wrappers import WRAPPERS


def test_notes_of_quantize_are_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_model(tmp_path / "tiny")
    for number, options in enumerate(([], ["--quiet"])):
        arguments = ["quantize", str(source), "-s", "w4a8-g32", "-o", str(tmp_path / str(number)), *options]
        assert command.main(arguments) == 0
        said = capsys.readouterr()
        assert (said.out + said.err).count("does not round the activations of w4a8-g32") == 1


EXPERT, DENSE = "model.layers.1.mlp.experts.0.up_proj", "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("family", "name", "module", "transformers", "vllm"),
    [
        ("llama", "int8", DENSE, LOADS, LOADS), ("qwen2", "int8", DENSE, LOADS, SOME),
        ("unheard_of", "int8", DENSE, SOME, SOME), ("qwen2", "bf16", DENSE, LOADS, LOADS),
        ("qwen2", "int4-asym", DENSE, REFUSES, SOME), ("mixtral", "int8", EXPERT, REFUSES, SOME),
        ("mixtral", "int4", EXPERT, LOADS, SOME), ("mixtral", "fp8", EXPERT, DIFFERS, SOME),
        ("gpt_oss", "int4", EXPERT, GARBAGE, SOME), ("llama4", "int8", EXPERT, LOADS, SOME),
        ("qwen3_vl_moe", "int4-g32", EXPERT, GARBAGE, SOME),
        ("glm4v_moe", "int8", EXPERT, REFUSES, SOME), ("glm4v_moe", "int4", EXPERT, LOADS, SOME),
        ("qwen3_moe", "mxfp8", EXPERT, REFUSES, SOME), ("phimoe", "int4", EXPERT, LOADS, SOME),
        ("qwen3_moe", "nvfp4-w16", EXPERT, GARBAGE, SOME), ("lfm2_moe", "int4", EXPERT, SOME, SOME),
    ],
)  # fmt: skip
def test_engines_are_spoken_of_as_they_were_run(
    family: str, name: str, module: str, transformers: str, vllm: str
) -> None:
    found = answers({module: scheme(name)}, family)
    assert [answer.verdict for answer in found] == [transformers, vllm]
    if vllm == SOME and module == DENSE:
        assert str(found[1]).endswith(f"none of {family} was run (docs/interop.md)")


def test_families_that_were_run_are_families() -> None:
    seeing = {row.model_type for row in WRAPPERS.values()} | {*WITHIN.values()}
    assert RUN["transformers"] | RUN["vllm"] <= {*ARCHS.values()} | seeing


def test_a_package_that_is_missing_is_no_bug() -> None:
    for name, wanted in (("PIL.Image", "pillow is not installed: pip install 'isobit[media]'"),
                         ("starlette", "isobit[serve]"), ("nobodys_package", "nobodys-package")):  # fmt: skip
        said = failures.explain(ModuleNotFoundError(f"No module named {name!r}", name=name))
        assert said is not None and "is not installed: pip install " in said and wanted in said
    for name in ("isobit.nothing", None):
        assert failures.explain(ModuleNotFoundError("No module", name=name)) is None
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra, packages in failures.EXTRAS.items():
        named = {re.split(r"[><=\[; ]", one)[0].replace("-", "_") for one in project["optional-dependencies"][extra]}
        assert {*packages} - {"PIL", "yaml"} <= named | {"lm_eval"}, extra


def test_info_has_the_numbers_that_a_token_needs(tmp_path: Path) -> None:
    from isobit.evaluation.info import text

    model = make_model("MixtralForCausalLM")
    experts = sum(one.numel() for name, one in model.named_parameters() if ".experts." in name)
    info = isobit.info(save(model, tmp_path / "m"))
    config = model.config
    idle = experts * (config.num_local_experts - config.num_experts_per_tok) // config.num_local_experts
    assert info.active_parameters == info.parameters - idle
    assert f"({info.parameters:,}), " in text(info) and "of them for a token" in text(info)
    assert isobit.info(save_model(tmp_path / "tiny")).active_parameters is None


def settings(*options: str) -> tuple[argparse.Namespace, Any]:
    parser = argparse.ArgumentParser()
    serve.register(parser.add_subparsers())
    args = parser.parse_args(["serve", "bundled", *options])
    return args, serve.read_settings(args)


def test_a_request_has_room_for_the_largest_file() -> None:
    for options, size in (
        ((), 32 << 20),
        (("--media-bytes", "100000000"), 100_000_000),
        (("--media-bytes", "64MiB"), 64 << 20),
        (("--media-bytes", "5"), 5),
    ):
        args, found = settings(*options)
        assert found.limits.body >= max(32 << 20, size * 4 / 3 + 1000) and not serve._unreachable(args, found)
    args, found = settings("--max-body", "4000000", "--media-bytes", "4000000")
    assert found.limits.body == 4_000_000
    (note,) = serve._unreachable(args, found)
    assert "--max-body 4000000: a request has room for a file of 2,213,568 bytes" in note


def test_broken_arguments_of_a_call_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    served = serving()
    wants = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments.items() }}{% endfor %}x"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "y"}]  # fmt: skip
    for template, status in (
        (f"{wants}{{% endfor %}}", 400),
        ("{{ messages[1].tool_calls[0].function.arguments }}", 200),
    ):
        monkeypatch.setattr(bundled().tokenizer, "chat_templates", {"default": template})
        body = {"messages": messages, "max_tokens": 1}
        reply = client(served).post("/v1/chat/completions", json=body)
        assert reply.status_code == status, reply.text
        if status == 400:
            message = reply.json()["error"]["message"]
            assert message.startswith("messages[1].tool_calls[0].function.arguments is no JSON object")
