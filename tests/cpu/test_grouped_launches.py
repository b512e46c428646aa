"""Over caches whose groups share a scale nothing is launched that is not proved, or that does not read them."""

from __future__ import annotations

from dataclasses import replace

import latent_oracle
import layer_oracle as oracle
import pytest
import torch

pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")

from isobit.errors import FormatError
from isobit.formats.caches import CACHE_FORMATS
from isobit.kernels.cached import Cached
from isobit.kernels.gpu.latent import GpuLatent
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.layer_rows import LAYER_ROWS
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.models.cache.memory import new_layers
from isobit.models.config import Kept
from isobit.proof.claims import claims
from isobit.targets.table import TARGETS

FORMS = {row.kv: row for row in CACHE_FORMATS.values() if row.group}
SPEC = AttentionSpec(32, 8, 128)


def held(kv: str, blocks: int, block: int, kept: Kept) -> Cached:
    return new_layers([kept], blocks, block, torch.bfloat16, None, FORMS[kv])[0]


def launched(recorder: Recorder) -> set[str]:
    return {request.entry.rpartition(":")[2] for request in recorder.requests.values()}


@pytest.mark.parametrize("kv", FORMS)
@pytest.mark.parametrize("name", ["sm_86", "sm_90", "gfx942"])
def test_every_launch_is_proved(name: str, kv: str) -> None:
    target = TARGETS[name]
    proved = {claim.request.name() for claim in claims(LAYER_ROWS, [target])}
    recorder, cpu = Recorder(), torch.device("cpu")
    machine = Machine.imagined(target, recorder=recorder)
    memory, found = held(kv, 4, 256, Kept(8, 128, 128)), set()
    for alike in (False, True) if name != "gfx942" else (False,):  # whose tiles were not compared
        layer = GpuLayer(machine, Workspace(cpu), alike=alike)
        for new, length in ((1, 700), (20, 40)):
            given = oracle.batch(SPEC, [(new, length)], 256, torch.bfloat16, 1, columns=16)
            layer.attention(SPEC, given.q, given.k, given.v, given.cos, given.sin, memory, given.sequences)
        found |= launched(recorder)
    few = "attention_alike_few" if name != "gfx942" else "attention_few"
    assert {"rope_append_any", "attention_few", "attention_many", "attention_merge", few} <= found
    latents, spec = GpuLatent(machine, Workspace(cpu)), latent_oracle.spec(16, 128, 64, 128, 512, torch.bfloat16)
    for sizes in ([(1, 600), (1, 500)], [(20, 20)]):
        q, kv_, cos, sin, _, sequences = latent_oracle.batch(spec, sizes, 64, torch.bfloat16, 1)
        sequences = replace(sequences, table=torch.zeros(len(sizes), 16).int())
        latents.latent(spec, q, kv_, cos, sin, held(kv, 24, 64, Kept(1, 512, 64)), sequences)
    assert {"latent_append", "latent_few", "latent_many"} <= launched(recorder)
    assert not [request for request in recorder.requests.values() if request.name() not in proved]


@pytest.mark.parametrize("kv", FORMS)
def test_every_query_head_with_keys_of_its_own_goes_to_what_reads_them(kv: str) -> None:
    spec, recorder = AttentionSpec(8, 8, 128), Recorder()
    layer = GpuLayer(Machine.imagined(TARGETS["sm_90"], recorder=recorder), Workspace(torch.device("cpu")))
    layer.reserve(spec, 2, 1, 1024)
    for sizes in ([(1, 700)], [(90, 90)]):
        given = oracle.batch(spec, sizes, 64, torch.bfloat16, 1, kv=kv)
        layer.attention(spec, *given.arguments)  # type: ignore[arg-type]
    assert launched(recorder) == {"rope_append_any", "attention_few", "attention_merge", "attention_many"}
    assert layer.workspace.nbytes == 4 * (2 * 8 * 8) * (128 + 2), "as it was reserved: parts of both sequences"


@pytest.mark.parametrize(
    ("dim", "target", "message"),
    [(80, "sm_90", "not of 80"), (128, "sm_75", "of which sm_75 has no products")],
)
def test_what_is_not_read_is_refused(dim: int, target: str, message: str) -> None:
    spec, recorder = AttentionSpec(4, 2, dim), Recorder()
    layer = GpuLayer(Machine.imagined(TARGETS[target], recorder=recorder), Workspace(torch.device("cpu")))
    given = oracle.batch(spec, [(1, 20)], 64, torch.float16, 1, kv="mxfp4")
    with pytest.raises(FormatError, match=message):
        layer.attention(spec, *given.arguments)  # type: ignore[arg-type]
    assert not recorder.requests


@pytest.mark.parametrize("kv", FORMS)
def test_scales_that_are_wrong_or_missing_are_refused(kv: str) -> None:
    layer = GpuLayer(Machine.imagined(TARGETS["sm_90"], recorder=Recorder()), Workspace(torch.device("cpu")))
    given = oracle.batch(AttentionSpec(4, 2, 64), [(1, 20)], 64, torch.bfloat16, 1, kv=kv)
    assert given.value_groups is not None
    for groups in (None, given.value_groups[..., :1], given.value_groups.view(torch.int8)):
        wrong = replace(given, value_groups=groups)
        with pytest.raises(FormatError, match="scales of groups, uint8"):
            layer.attention(AttentionSpec(4, 2, 64), *wrong.arguments)  # type: ignore[arg-type]
    if given.form.one_scale:
        with pytest.raises(FormatError, match="float32 scales"):
            layer.attention(AttentionSpec(4, 2, 64), *replace(given, key_scales=None).arguments)  # type: ignore[arg-type]
