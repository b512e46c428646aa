"""Targets and boards: every row stands on a source, names are found as people write them, what is refused says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isobit.errors import Unsupported, UsageError
from isobit.formats.table import ELEMENTS
from isobit.kernels.cpu.threads import Threads, choose
from isobit.legalize.calibration import machine_key
from isobit.targets.boards import BOARDS
from isobit.targets.cores import Cores
from isobit.targets.detect import Machine
from isobit.targets.here import cpu_machine, gpu_machine, gpus, here
from isobit.targets.spec import Board, MatrixUnit
from isobit.targets.table import TARGETS, UNSUPPORTED, board, lookup, reference_board, target

NAMED = (
    "sm_70 sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 sm_100 sm_103 sm_110 sm_120 sm_121 gfx90a gfx942 gfx950 gfx1100 gfx1201"
    " cpu-avx2 cpu-avx512 cpu-amx cpu-neon"
).split()


def test_every_named_target_is_there_with_a_board_and_a_source() -> None:
    for name in NAMED:
        row = TARGETS[name]
        assert row.source and row.title and row.shared_memory > 0 and row.registers > 0
        assert reference_board(row) is not None, name


@pytest.mark.parametrize("row", BOARDS.values(), ids=lambda row: row.name)
def test_boards_point_at_targets_and_their_units_have_rates(row: Board) -> None:
    assert row.source and row.memory > 1 << 30 and row.bandwidth > 1e10
    units = TARGETS[row.target].matrix
    missing = {unit.a for unit in units if not unit.unreachable and unit.a == unit.b and row.tops(unit.a) is None}
    assert not missing, f"{row.name} lacks the rate of {missing}"


def test_units_name_formats_that_exist() -> None:
    plain = {"float16", "bfloat16", "float32"}
    for row in TARGETS.values():
        for unit in row.matrix:
            assert {unit.a, unit.b} <= set(ELEMENTS) | plain and unit.accumulator in ("float32", "int32")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a6000", ("sm_86", "RTX A6000")),
        ("NVIDIA RTX A6000", ("sm_86", "RTX A6000")),
        ("SM86", ("sm_86", "RTX A6000")),
        ("sm_90a", ("sm_90", "H100 SXM")),
        ("8.9", ("sm_89", "L4")),
        ("NVIDIA GeForce RTX 4090", ("sm_89", "RTX 4090")),
        ("5090", ("sm_120", "RTX 5090")),
        ("GFX942", ("gfx942", "MI300X")),
        ("MI300X", ("gfx942", "MI300X")),
        ("cpu-avx2", ("cpu-avx2", "laptop (8 cores, DDR4)")),
    ],
)
def test_names_as_people_write_them(name: str, found: tuple[str, str]) -> None:
    row, product = lookup(name)
    assert product is not None and (row.name, product.name) == found


@pytest.mark.parametrize("name", [*UNSUPPORTED, "Metal", "RX 6800", "mps"])
def test_what_is_not_compiled_for_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(Unsupported, match=r"Triton|RDNA 2"):
        lookup(name)


@pytest.mark.parametrize(("name", "close"), [("sm_88", "sm_8"), ("RTX A600", "RTX A6000"), ("gfx941", "gfx942")])
def test_unknown_names_get_the_nearest(name: str, close: str) -> None:
    for search in (target, board, lookup):
        with pytest.raises(UsageError, match=f"Did you mean {close}"):
            search(name)


def test_narrow_sums_must_be_promoted_and_full_ones_not() -> None:
    hopper, blackwell = TARGETS["sm_90"].unit("e4m3fn", "e4m3fn"), TARGETS["sm_100"].unit("e4m3fn", "e4m3fn")
    assert hopper is not None and hopper.promote_every == 128
    assert blackwell is not None and blackwell.promote_every is None
    assert MatrixUnit("int8", "int8", "int32", "IMMA", accumulator_mantissa=13).promote_every is None


FOUR = Threads(4, "the affinity mask")


def _machine(features: tuple[str, ...], gpus: tuple[str, ...] = ()) -> Machine:
    return Machine("Linux", "3.11", "some CPU", features, 4, 32 << 30, 30 << 30, None, gpus, ())


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (("avx2", "f16c", "fma"), "cpu-avx2"),
        (("avx2", "f16c", "fma", "avx512f"), "cpu-avx2"),
        (("avx2", "f16c", "fma", "avx512f", "avx512_vnni"), "cpu-avx512"),
        (("avx2", "f16c", "fma", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"), "cpu-amx"),
        (("asimddp", "bf16"), "cpu-neon"),
        ((), "cpu-portable"),
    ],
)
def test_the_cpu_is_the_best_target_that_it_has_the_features_for(features: tuple[str, ...], name: str) -> None:
    found, product = cpu_machine(_machine(features), FOUR)
    assert found.name == name and product.estimated and product.memory == 32 << 30


@pytest.mark.parametrize(
    ("environment", "used", "name"),
    [
        ({}, 4, "this CPU, 4 cores"),
        ({"OMP_NUM_THREADS": "1"}, 1, "this CPU, 1 of 4 cores (OMP_NUM_THREADS)"),
        ({"OMP_NUM_THREADS": "1", "ISOBIT_THREADS": "2"}, 2, "this CPU, 2 of 4 cores (ISOBIT_THREADS)"),
        ({"OMP_NUM_THREADS": "64"}, 4, "this CPU, 4 cores"),
        ({"ISOBIT_THREADS": "64"}, 4, "this CPU, 4 cores"),
    ],
)
def test_a_cpu_is_planned_for_the_threads_that_run(environment: dict[str, str], used: int, name: str) -> None:
    machine = _machine(())
    target, product = cpu_machine(machine, choose(environment, Cores(machine.cores)))
    _, whole = cpu_machine(machine, FOUR)
    alone = cpu_machine(replace(machine, cores=1), FOUR)[1]
    assert product.name == name
    assert dict(product.rates) == {kind: pytest.approx(used * rate) for kind, rate in alone.rates}
    assert product.bandwidth == pytest.approx(used * alone.bandwidth)
    assert machine_key(target, product) == machine_key(target, whole), "what was measured belongs to the machine"


def test_gpus_are_found_by_name_and_by_capability() -> None:
    lines = (
        "NVIDIA RTX A6000, 8.6, 49140 MiB, 580.1",
        "NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 580.1",
        "NVIDIA Wonder, 8.9, 9000 MiB, 580.1",
        "NVIDIA Ancient, 3.5, 2000 MiB, 470.1",
        "NVIDIA Odd, [N/A], [N/A], 470.1",
    )
    machine = _machine(("avx2", "f16c", "fma"), lines)
    found = [(row.name, product.name, product.estimated) for row, product in here(FOUR, machine)]
    assert found == [
        ("sm_86", "NVIDIA RTX A6000", False),
        ("sm_90", "NVIDIA H100 80GB HBM3", False),
        ("sm_89", "NVIDIA Wonder", True),
        ("cpu-avx2", "this CPU, 4 cores", True),
    ]
    assert len(gpus(machine)) == 4 and gpu_machine(gpus(machine)[3]) is None
