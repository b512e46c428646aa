"""gpt-oss's MXFP4: blocks and scales of all experts, read as transformers dequantizes them, run, planned, quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model, token_ids
from safetensors.torch import save_file
from torch import Tensor

import isobit
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import IsobitError
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import scheme
from isobit.models.batch import Batch
from isobit.models.contents import contents
from isobit.models.planning import plans
from isobit.models.weights import load_model

LEFT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
SAID = {"quant_method": "mxfp4", "modules_to_not_convert": LEFT}
STACKS = "gate_up_proj", "down_proj"


def packed(experts: int, n: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random blocks and scales of all experts, every code among them."""
    made = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, n, k // 32, 16), generator=made, dtype=torch.uint8)
    return blocks, torch.randint(116, 122, (experts, n, k // 32), generator=made, dtype=torch.uint8)


def numbers(blocks: Tensor, scales: Tensor) -> Tensor:
    """What transformers makes of them, float32 ``[experts, N, K]``: it turns the last two axes round."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales).transpose(1, 2).float()  # type: ignore[no-untyped-call]


def tensors_and_model() -> tuple[dict[str, Tensor], Any]:
    """The tensors of a tiny checkpoint, and the model of transformers with their numbers."""
    model = make_model("GptOssForCausalLM")
    for parameter in model.parameters():  # and no buffers: what rotates stays float32
        parameter.data = parameter.data.bfloat16()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number, layer in enumerate(model.model.layers):
        for seed, stack in enumerate(STACKS):
            name = f"model.layers.{number}.mlp.experts.{stack}"
            experts, k, n = tensors.pop(name).shape
            blocks, scales = packed(experts, n, k, 10 * number + seed)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            getattr(layer.mlp.experts, stack).data.copy_(numbers(blocks, scales).transpose(1, 2))
    return tensors, model


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Tensor]]:
    tensors, model = tensors_and_model()
    config = {**model.config.to_dict(), "quantization_config": SAID}
    return write(tmp_path_factory.mktemp("made"), tensors, config), model, tensors


Made = tuple[Path, Any, dict[str, Tensor]]


def test_every_number_is_transformers(made: Made) -> None:
    folder, _, tensors = made
    ck = contents(Checkpoint.open(folder)).ck
    prefix = "model.layers.1.mlp.experts"
    whole = {stack: numbers(*(tensors[f"{prefix}.{stack}_{end}"] for end in ("blocks", "scales"))) for stack in STACKS}
    for expert in range(5):
        halves = whole["gate_up_proj"][expert]
        wanted = {"gate_proj": halves[::2], "up_proj": halves[1::2], "down_proj": whole["down_proj"][expert]}
        for name, values in wanted.items():
            read = read_linear(ck, f"{prefix}.{expert}.{name}")
            assert isinstance(read.weight, QTensor) and read.weight.spec == scheme("mxfp4-w16").weights
            assert torch.equal(read.numbers(), values) and read.bias is not None
            part = read_linear(ck, f"{prefix}.{expert}.{name}", slice(3, 50), slice(32, 96)).numbers()
            assert torch.equal(part, values[3:50, 32:96])


def test_all_codes_under_all_scales(tmp_path: Path) -> None:
    """Of e8m0 but 254 and 255, under which transformers has infinities: those are refused by name."""
    tensors, model = tensors_and_model()
    name = "model.layers.0.mlp.experts.down_proj"
    shape = tensors[f"{name}_blocks"].shape
    codes = torch.arange(shape.numel()).reshape(shape).to(torch.uint8)
    scales = (torch.arange(shape[:3].numel()).reshape(shape[:3]) % 253).to(torch.uint8)
    config = {**model.config.to_dict(), "quantization_config": SAID}
    folder = write(tmp_path / "m", tensors | {f"{name}_blocks": codes, f"{name}_scales": scales}, config)
    ck = contents(Checkpoint.open(folder)).ck
    for expert in range(5):
        found = read_linear(ck, f"model.layers.0.mlp.experts.{expert}.down_proj").numbers()
        assert torch.equal(found, numbers(codes, scales)[expert])
    for bad, why in ((254, "beyond float32"), (255, "NaN")):
        scales[3, 1, 0] = bad
        folder = write(tmp_path / str(bad), tensors | {f"{name}_scales": scales}, config)
        with pytest.raises(IsobitError, match=rf"experts\.3\.down_proj\.weight_scale.*{why}"):
            load_model(folder)


def test_the_model_runs_as_transformers_dequantized(made: Made) -> None:
    folder, model, _ = made
    ids = token_ids(40, batch=1)
    with torch.no_grad():
        wanted = model.float()(ids).logits[0]
    found = load_model(folder, dtype="float32").forward(Batch.of(ids.tolist()))
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_transformers_loads_the_same_file_so(made: Made) -> None:
    """The names, shapes and configuration of these tests are what transformers takes."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    folder, model, _ = made
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True))
    for number, layer in enumerate(theirs.model.layers):
        for stack in STACKS:
            wanted = getattr(model.model.layers[number].mlp.experts, stack)
            assert torch.equal(getattr(layer.mlp.experts, stack).float(), wanted.float())


def test_three_axes_are_read_as_four(tmp_path: Path, made: Made) -> None:
    folder, model, tensors = made
    flat = {name: part.flatten(2) if name.endswith("_blocks") else part for name, part in tensors.items()}
    other = write(tmp_path / "m", flat, {**model.config.to_dict(), "quantization_config": SAID})
    batch = Batch.of([[3, 1, 4, 1, 5]])
    assert torch.equal(load_model(other).forward(batch), load_model(folder).forward(batch))


def test_plan_and_info(made: Made) -> None:
    folder, _, tensors = made
    info, (_, ((plan,),)) = describe(folder), plans(folder, targets=("cpu-avx2",))
    assert info.quantization == "mxfp4" and plan.action == "legalized"
    experts = next(use for use in info.schemes if use.scheme == "mxfp4-w16")
    assert experts.modules == 2 * 5 * 3 and experts.bits_per_weight == pytest.approx(4.25, abs=0.2)  # with biases
    assert not any("surplus" in note or "does not load" in note for note in info.notes)
    _, ((gpu,),) = plans(folder, targets=("sm_90",))
    assert gpu.action == "legalized"


def test_quantizes_only_when_asked(tmp_path: Path, made: Made) -> None:
    folder, model, _ = made
    with pytest.raises(IsobitError, match="--from-quantized"):
        isobit.quantize(folder, tmp_path / "out", "int8-w8a16", progress=False)
    report = isobit.quantize(folder, tmp_path / "out", "int8-w8a16", progress=False, from_quantized=True)
    assert 0 < report.relative_squared_error < 1e-3
    both = (load_model(one, dtype="float32") for one in (tmp_path / "out", folder))
    found, wanted = (one.forward(Batch.of([[3, 1, 4, 1, 5]])) for one in both)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


BAD: dict[str, Any] = {
    "no scales": lambda t, c: t.pop("model.layers.0.mlp.experts.down_proj_scales"),
    "no blocks": lambda t, c: t.pop("model.layers.1.mlp.experts.gate_up_proj_blocks"),
    "no bias": lambda t, c: t.pop("model.layers.1.mlp.experts.gate_up_proj_bias"),
    "fewer experts": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: x[:4]),
    "more experts": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: torch.cat((x, x[:1]))),
    "fewer rows": lambda t, c: change(t, "0.mlp.experts.gate_up_proj_blocks", lambda x: x[:, :-2]),
    "half the rows": lambda t, c: change(t, "0.mlp.experts.gate_up_proj_blocks", lambda x: x[:, ::2]),
    "fewer groups": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: x[:, :, :-1]),
    "blocks of 8": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: x[..., :8]),
    "two axes": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: x.flatten(1)),
    "scales of fewer experts": lambda t, c: change(t, "0.mlp.experts.down_proj_scales", lambda x: x[1:]),
    "scales of fewer rows": lambda t, c: change(t, "0.mlp.experts.down_proj_scales", lambda x: x[:, 1:]),
    "scales of fewer groups": lambda t, c: change(t, "0.mlp.experts.down_proj_scales", lambda x: x[..., 1:]),
    "scales as floats": lambda t, c: change(t, "0.mlp.experts.down_proj_scales", lambda x: x.float()),
    "blocks as words": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: x.int()),
    "blocks as signed bytes": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: x.view(torch.int8)),
    "blocks turned": lambda t, c: change(t, "0.mlp.experts.down_proj_blocks", lambda x: x.transpose(1, 2)),
    "plain beside": lambda t, c: t.update({"model.layers.0.mlp.experts.down_proj": torch.zeros(5, 128, 256)}),
    "another method": lambda t, c: c.update(quantization_config={"quant_method": "mxfp6"}),
    "no method": lambda t, c: c.pop("quantization_config"),
    "a list": lambda t, c: c.update(quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": 7}),
    "left out": lambda t, c: c.update(quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["mlp"]}),
    "other sizes": lambda t, c: c.update(intermediate_size=96),
    "other experts": lambda t, c: c.update(num_local_experts=4),
}


def change(tensors: dict[str, Tensor], name: str, into: Any) -> None:
    tensors[f"model.layers.{name}"] = into(tensors[f"model.layers.{name}"])


@pytest.mark.parametrize("name", BAD)
def test_what_contradicts_itself_is_refused_by_name(tmp_path: Path, made: Made, name: str) -> None:
    _, model, tensors = made
    tensors, config = dict(tensors), {**model.config.to_dict(), "quantization_config": SAID}
    BAD[name](tensors, config)
    folder = write(tmp_path / "m", tensors, config)
    with pytest.raises(IsobitError, match=r"experts|mxfp|modules_to_not_convert") as raised:
        load_model(folder)
    assert len(str(raised.value)) < 3000
    with pytest.raises(IsobitError):
        isobit.quantize(folder, tmp_path / "out", "int8", progress=False, from_quantized=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [1, 1000, 100_000])
def test_what_is_cut_off_is_refused(tmp_path: Path, made: Made, cut: int) -> None:
    folder, model, tensors = made
    other = write(tmp_path / "m", tensors, {**model.config.to_dict(), "quantization_config": SAID})
    data = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(data[:-cut])
    with pytest.raises(IsobitError, match=r"model\.safetensors"):
        load_model(other)
