"""What is proved is what is launched: the same requests, argument for argument. No GPU needed."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")

from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import scheme
from isobit.formats.table import element
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.rows import VARIANTS
from isobit.proof.claims import claims
from isobit.targets.table import TARGETS

N, K = 4096, 4096  # as claims take weights to be
TOKENS = (1, 8, 16, 40, 1024)
SCHEMES = ("bf16", "fp8", "fp8-e5m2", "fp8-static", "fp8-block", "fp8-w8a16", "int8", "int8-w8a16", "int4", "int4-asym")


def weight(name: str, dtype: torch.dtype) -> QTensor | torch.Tensor:
    spec = scheme(name).weights
    if spec is None:
        return torch.zeros(N, K, dtype=dtype)
    row = element(spec.element)
    codes = torch.zeros(N, K, dtype=torch.int8 if row.kind == "int" and row.signed else torch.uint8)
    shape = spec.scale_shape(N, K)
    zero = None if spec.symmetric else torch.zeros(shape, dtype=torch.uint8)
    return QTensor(spec, (N, K), pack(codes, row) if row.bits < 8 else codes, torch.ones(shape).bfloat16(), zero)


@pytest.mark.parametrize("name", ["sm_75", "sm_86", "sm_90", "sm_120", "gfx942"])
def test_every_launch_of_a_usual_weight_is_proved(name: str) -> None:
    target = TARGETS[name]
    dtype = torch.float16 if name == "sm_75" else torch.bfloat16
    proved = {claim.request.name(): claim.variant for claim in claims(VARIANTS, [target])}
    launched: set[str] = set()
    for one in SCHEMES:
        acts, recorder = scheme(one).activations, Recorder()
        static = torch.tensor([0.5]) if acts is not None and not acts.dynamic else None
        bound = bind(weight(one, dtype), acts, static, None, machine=Machine.imagined(target, recorder=recorder))
        for tokens in TOKENS:
            row = bound.variant(tokens, dtype)
            if row is None or not row.library:
                bound(torch.zeros(tokens, K, dtype=dtype))
        for request in recorder.requests.values():
            assert request.name() in proved, (one, request)
            launched.add(proved[request.name()])
    assert len(launched) >= 15
