"""The proof end to end on small kernels: compiled here for GPUs that are not here, read, checked, kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiling kernels needs Triton: pip install triton")

from isobit.errors import CapacityError, IsobitError, Unsupported
from isobit.kernels.gpu.compile import processes
from isobit.kernels.gpu.compile.request import Request, sources
from isobit.proof import matrix
from isobit.proof.matrix import Claim, Outcome, prove
from isobit.proof.store import Store, cache_folder

SM_80, SM_90, GFX942 = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)


def product(backend: tuple[str, int | str, int], dtype: str, promise: str, **fields: object) -> Claim:
    types = {"a": f"*{dtype}", "b": f"*{dtype}", "c": "*fp32", "M": "i32", "N": "i32", "K": "i32"}
    request = Request("proof_kernels:product", backend, types, {"BLOCK": 64, "BLOCK_K": 64, "PEAK": None}, tuple(types))
    return Claim(f"product-{dtype}", str(backend[1]), request, (promise,), **fields)  # type: ignore[arg-type]


# One compilation of each serves all tests below.
TRUE = {
    "f16 on sm_80": product(SM_80, "fp16", r"HMMA\.16816\.F32$"),
    "int8 on sm_80": product(SM_80, "i8", r"IMMA\.16832\.S8"),
    "f16 on sm_90": product(SM_90, "fp16", r"HGMMA\.64x64x16\.F32$"),
    "e4m3 on sm_90": product(SM_90, "fp8e4nv", r"QGMMA\.64x64x32\.F32\.E4M3\.E4M3$"),
    "f16 on gfx942": product(GFX942, "fp16", r"v_mfma_f32_\d+x\d+x\d+_f16$"),
}
FALSE = {
    "another instruction than promised": (product(SM_90, "fp16", "QGMMA"), "promises QGMMA, but .* shows HGMMA"),
    "no hardware for the format": (product(SM_80, "fp8e4nv", "QMMA"), "does not compile: .*fp8e4nv not supported"),
    "too much shared memory": (product(SM_90, "fp16", "HGMMA", shared_limit=1024), "the target has 1024 per block"),
    "no such kernel": (
        replace(TRUE["f16 on sm_90"], request=replace(TRUE["f16 on sm_90"].request, entry="proof_kernels:nothing")),
        "is not a Triton kernel",
    ),
    "an argument left out": (
        replace(TRUE["f16 on sm_90"], request=replace(TRUE["f16 on sm_90"].request, constants={"BLOCK": 64})),
        r"leaves out \['BLOCK_K', 'PEAK'\]",
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def outcomes(store: Store) -> dict[str, Outcome]:
    cases = {**TRUE, **{name: claim for name, (claim, _) in FALSE.items()}}
    return dict(zip(cases, prove(cases.values(), store, processes=2), strict=True))


@pytest.mark.parametrize("case", TRUE)
def test_true_claims_hold(case: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[case]
    assert outcome.problems == ()
    assert outcome.evidence is not None and outcome.evidence.has_loop
    assert 16 <= outcome.evidence.registers <= 512 and outcome.evidence.shared >= 64 * 64


@pytest.mark.parametrize("case", FALSE)
def test_false_claims_fail_and_say_why(case: str, outcomes: dict[str, Outcome]) -> None:
    problems = " ".join(outcomes[case].problems)
    assert __import__("re").search(FALSE[case][1], problems), problems


def test_registers_are_what_the_toolkit_says(outcomes: dict[str, Outcome], tmp_path: Path) -> None:
    # nvdisasm prints the register count of older architectures in the section's header; ours came from cuobjdump.
    claim = TRUE["f16 on sm_80"]
    (outcome,) = prove([claim], Store(tmp_path / "cache"), processes=1, listings=tmp_path / "listings")
    (listing,) = (tmp_path / "listings").iterdir()
    assert outcome.evidence is not None
    assert f"SHI_REGISTERS={outcome.evidence.registers}" in listing.read_text()
    assert outcome.evidence.binary == outcomes["f16 on sm_80"].evidence.binary  # type: ignore[union-attr]


def test_the_second_time_nothing_is_compiled(
    store: Store, outcomes: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> Iterator[object]:
        assert not args[0], f"compiles again: {args[0]}"
        return iter(())

    monkeypatch.setattr(matrix, "_answers", refuse)
    again = prove(TRUE.values(), store, processes=1)
    assert all(one.cached for one in again)
    assert [one.evidence for one in again] == [outcomes[name].evidence for name in TRUE]


def test_promises_are_checked_against_cached_evidence(store: Store, outcomes: dict[str, Outcome]) -> None:
    (outcome,) = prove([replace(TRUE["f16 on sm_80"], promises=("QMMA",))], store, processes=1)
    assert outcome.cached and outcome.problems == ("promises QMMA, but the hot loop shows HMMA.16816.F32",)


def test_a_key_depends_on_everything_that_decides_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = TRUE["f16 on sm_80"].request
    keys = {
        request.key("3.9.0"),
        request.key("3.9.1"),
        replace(request, backend=SM_90).key("3.9.0"),
        replace(request, constants={**request.constants, "BLOCK": 32}).key("3.9.0"),
        replace(request, options={"num_warps": 8}).key("3.9.0"),
        replace(request, aligned=()).key("3.9.0"),
    }
    assert len(keys) == 6
    assert request.key("3.9.0") in keys


def test_sources_follow_imports_within_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somekernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("import json\nfrom somekernels.b import helper\n")
    (package / "b.py").write_text("from somekernels import c\n")
    (package / "c.py").write_text("raise RuntimeError('sources are read, not run')\n")
    (package / "d.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(sources("somekernels.a")) == {"somekernels.a", "somekernels.b", "somekernels", "somekernels.c"}
    with pytest.raises(IsobitError, match="no module 'somekernels.nothing'"):
        sources("somekernels.nothing")


def test_a_damaged_cache_entry_is_compiled_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = "0" * 64
    (tmp_path / f"{key}.json").write_text('{"registers": 3')
    assert store.get(key) is None
    (tmp_path / f"{key}.json").write_text(json.dumps({"registers": 3}))
    assert store.get(key) is None


def test_a_cache_that_cannot_be_written_says_so(outcomes: dict[str, Outcome], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    evidence = outcomes["f16 on sm_80"].evidence
    assert evidence is not None
    with pytest.raises(CapacityError, match="ISOBIT_CACHE"):
        Store(tmp_path / "file" / "proof").put("0", evidence)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_folder() == Path("/one")
    monkeypatch.delenv("ISOBIT_CACHE")
    assert cache_folder() == Path("/two/isobit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "isobit"


def test_without_triton_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise __import__("importlib.metadata").metadata.PackageNotFoundError(name)

    monkeypatch.setattr(processes.importlib.metadata, "version", missing)
    with pytest.raises(Unsupported, match="pip install triton"):
        prove([], Store(tmp_path), processes=1)


def test_a_kernel_that_takes_its_process_down_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "killers.py").write_text("import os\nos._exit(3)\n")
    good = TRUE["f16 on gfx942"]
    bad = replace(good, variant="killer", request=replace(good.request, entry="killers:kernel"))
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        outcomes = prove([bad, good], Store(tmp_path / "cache"), processes=1)
    finally:
        sys.path.remove(str(tmp_path))
    assert "ended its process" in outcomes[0].problems[0]
    assert outcomes[1].problems == ()


def test_the_command_refuses_unknown_targets() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isobit", "compile", "--target", "sm_68"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "sm_68" in done.stderr and "Did you mean sm_8" in done.stderr
