"""Kernel packs of mixtures of experts: what their layers launch on a card is in the pack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import make_model, save

pytest.importorskip("triton", reason="kernel packs are compiled by Triton: pip install triton")

from isobit.checkpoint.reader import Checkpoint
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.kernels.gpu import mixture
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.routing import GpuRouter
from isobit.models import pack
from isobit.models.contents import contents
from isobit.models.experts import ExpertsMLP
from isobit.models.feed_forward import Experts
from isobit.quantizer.driver import quantize
from isobit.targets.table import TARGETS

TARGET = TARGETS["sm_90"]


@pytest.mark.parametrize("are_sorted", [False, True])
@pytest.mark.parametrize("name", ["bf16", "fp8", "int4-g32"])
def test_what_experts_launch_is_in_the_pack(
    name: str, are_sorted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "SHORTEST", 0 if are_sorted else 1 << 20)
    folder = save(make_model("MixtralForCausalLM"), tmp_path / "source", torch.bfloat16)
    if name != "bf16":
        quantize(folder, tmp_path / "out", Policy(scheme(name)), progress=False)
        folder = tmp_path / "out"
    held = contents(Checkpoint.open(folder))
    packed, dtype = pack.requests(held, TARGET, None)
    assert dtype == "bfloat16"
    functions = {request.entry.partition(":")[2] for request in packed.values()}
    assert functions >= {"choose_pairs", "router_token", "router_tiles", "place_ranked", "add_experts"}
    assert (functions >= {"linear_experts", "take_rows"}) == (are_sorted and name in ("bf16", "fp8"))
    of_experts = [
        request for request in packed.values() if request.constants.get("EXPERTS") and "SHARE" in request.constants
    ]
    assert {request.constants["SHARE"] for request in of_experts} == {1, 2}, "down, and gate and up, of two each"
    recorder = Recorder()
    machine = Machine.imagined(TARGET, 78, recorder)
    layer = next(
        pack._layers(
            held, torch.bfloat16, pack.Place("cuda", torch.device("cpu"), machine, pack.Workspace(torch.device("cpu")))
        )
    )
    assert isinstance(layer.mlp, ExpertsMLP) and isinstance(layer.spec.mlp, Experts)
    router = GpuRouter(machine, pack.Workspace(torch.device("cpu")))
    for tokens in (1, 3, 12, 20, 400, 700):
        x, bound, routing = torch.zeros(tokens, held.config.hidden_size).bfloat16(), layer.mlp.bound, layer.mlp.routing
        bound(x, router.route(routing, x, *bound.wants(x, routing.active)))
    assert recorder.requests and recorder.requests.keys() <= packed.keys()
