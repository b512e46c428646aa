"""`isobit compile`: the table, JSON, listings, the page and its check, exit statuses; on one small kernel."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiling kernels needs Triton: pip install triton")

from isobit.cli.compile import gpu_targets
from isobit.cli.main import main
from isobit.kernels.gpu import rows
from isobit.proof import claims as claiming
from isobit.proof.claims import all_rows, claims
from isobit.proof.page import page
from isobit.targets.table import TARGETS

SMALL = ["--target", "gfx942", "--variant", "quantize-group", "-j", "1"]
ROWS = ("quantize-group", "quantize-group-wide")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_CACHE", str(cache))


def test_the_table_and_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", *SMALL]) == 0
    out = capsys.readouterr().out
    assert all(f"gfx942  {row}" in out for row in ROWS)
    assert out.splitlines()[-1].startswith("2 of 2 claims hold; ")


def test_json_says_what_was_promised_and_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", *SMALL, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["variant"], row["target"], row["problems"]) for row in rows] == [(row, "gfx942", []) for row in ROWS]
    assert rows[0]["evidence"]["registers"] > 0 and rows[0]["evidence"]["opcodes"]


def test_a_claim_that_does_not_hold_is_status_1_and_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(rows.variant("quantize-group"), promises=lambda target: ("v_mfma",))
    monkeypatch.setattr(claiming, "VARIANTS", (row,))
    assert main(["compile", *SMALL]) == 1
    out = capsys.readouterr().out
    assert "quantize-group on gfx942:\n  - promises v_mfma, but" in out and "0 of 1 claims hold" in out


def test_the_page_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    support = tmp_path / "support.md"
    asked = ["compile", *SMALL, "--support", str(support)]
    assert main([*asked, "--check"]) == 1, "there is no page yet"
    assert "make support" in capsys.readouterr().err
    assert main(asked) == 0
    text = support.read_text()
    assert "### gfx942: CDNA 3" in text and "| quantize-group | - |" in text and "| gfx942 |" in text
    assert main([*asked, "--check"]) == 0
    support.write_text(text.replace("| quantize-group |", "| quantize-something |"))
    assert main([*asked, "--check"]) == 1


def test_a_page_is_checked_by_what_is_recorded_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    support, recorded = tmp_path / "support.md", tmp_path / "support.evidence"
    asked = ["compile", *SMALL, "--support", str(support)]
    check = [*asked, "--check", "--sample", "1"]

    def fails(*words: str) -> bool:
        status, said = main(check), capsys.readouterr()
        return status == 1 and all(word in said.err for word in ("make support", *words))

    assert main(check) == 2 and "make support" in capsys.readouterr().err, "there is no page yet"
    assert main(asked) == 0
    page, lines = support.read_text(), recorded.read_text()
    assert lines.splitlines()[0] == "kernels: --target gfx942 --variant quantize-group" and len(lines.splitlines()) == 3
    assert main(check) == 0 and "1 of 1 claims hold" in capsys.readouterr().out
    support.write_text(page.replace("| quantize-group |", "| quantize-something |"))
    assert fails("recorded")
    support.write_text(page)
    first, *held = lines.splitlines()
    recorded.write_text(f"{first}\n{held[1]}\n")
    assert fails("1 kernels of now", "quantize-group")
    recorded.write_text(lines + "f" * 16 + " 1 0 0+0\n")
    assert fails("1 records are of kernels that are no more")
    # Registers that are no kernel's, on the page as well: what is compiled again tells.
    registers = {one.split()[1] for one in held}
    recorded.write_text("\n".join([first, *(f"{one.split()[0]} 9 {one.split(' ', 2)[2]}" for one in held), ""]))
    for number in registers:
        page = page.replace(f"| {number} |", "| 9 |")
    support.write_text(page)
    assert fails("is recorded", "shows")
    capsys.readouterr()
    for damaged, why in (
        ("what\n", "line 1"), (f"{first}\nwhat\n", "line 2"), ("\n".join([first, *held[::-1], ""]), "line 3"),
        (lines + held[1] + "\n", "line 4"), (lines.replace(" 0+0", f" {'9' * 5000}+0"), "line 2"),
    ):  # fmt: skip
        recorded.write_text(damaged)
        assert main(check) == 2, damaged
        said = capsys.readouterr().err
        assert why in said and str(recorded) in said
    recorded.write_bytes(lines.encode() + b"\xff\n")
    assert main(check) == 2 and "line 4" in capsys.readouterr().err
    recorded.write_text(lines)
    support.write_bytes(b"\xff")
    assert fails("recorded")
    assert main([*asked, "--check"]) == 1, "all of them, by compiling"


def test_a_page_of_other_kernels_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    support = tmp_path / "support.md"
    assert main(["compile", *SMALL, "--support", str(support)]) == 0
    page = support.read_bytes(), support.with_suffix(".evidence").read_bytes()
    others = ["compile", "--target", "gfx942", "--variant", "quantize-int8", "--support"]
    for more in ((), ("--check",), ("--check", "--sample", "1")):
        assert main([*others, str(support), *more]) == 2
        assert "is of other kernels" in capsys.readouterr().err
    assert (support.read_bytes(), support.with_suffix(".evidence").read_bytes()) == page
    places = {tmp_path: "a folder", tmp_path / "no" / "x.md": "not there", tmp_path / "x.evidence": "beside a page"}
    for place, why in places.items():
        assert main([*others, str(place)]) == 2 and why in capsys.readouterr().err


def test_listings_are_written(tmp_path: Path) -> None:
    assert main(["compile", *SMALL, "--listings", str(tmp_path / "out")]) == 0
    written = list((tmp_path / "out").iterdir())
    assert {path.name for path in written} == {f"{row}.gfx942.s" for row in ROWS}
    assert all("s_endpgm" in path.read_text() for path in written)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check"], "--support"),
        (["--sample", "3", "--support", "x"], "--check"),
        (["--target", "sm_68"], "Did you mean sm_"),
        (["--target", "cpu-avx2"], "name a GPU target"),
        (["--target", ","], "names no target"),
        (["--target", "gfx1030"], "RDNA 2"),
        (["--variant", "nothing*"], "no kernel's name matches"),
        (["--variant", "many-bf16", "--target", "sm_75"], "nothing to compile"),
    ],
)
def test_mistakes_are_status_2_and_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--target", "sm_86"], ["bundled", "--target", "sm_86", "-o", "pack"]])
def test_without_triton_it_says_how_to_get_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["compile", *arguments]) == 2
    assert "pip install triton" in capsys.readouterr().err


def test_all_is_every_target_with_a_backend_and_boards_are_targets_too() -> None:
    assert {row.name for row in gpu_targets("all")} == {name for name, row in TARGETS.items() if row.backend}
    assert [row.name for row in gpu_targets("RTX A6000, sm_86,H200")] == ["sm_86", "sm_90"]


def test_claims_are_what_the_rows_say_can_run() -> None:
    sm_75 = TARGETS["sm_75"]
    names = {one.variant for one in claims(all_rows(), [sm_75])}
    assert names == {row.name for row in all_rows() if row.requires(sm_75) is None}
    assert "many-f16" in names and "many-bf16" not in names
    assert "attention-few-f16" in names and "attention-few-bf16" not in names


def test_a_page_of_nothing_has_no_tables() -> None:
    assert "###" not in page([], [TARGETS["sm_90"]], "3.9.0")


@pytest.mark.parametrize(
    "option", [["--variant", "x"], ["--listings", "x"], ["--support", "x"], ["--json"], ["--check"], ["--sample", "1"]]
)
def test_a_pack_refuses_what_is_for_all_kernels(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", "bundled", "-o", str(tmp_path / "pack"), "--target", "sm_86", *option]) == 2
    assert f"{option[0]} is for all kernels" in capsys.readouterr().err and not (tmp_path / "pack").exists()


def test_all_kernels_refuse_a_format_of_a_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--target", "sm_86", "--kv-cache", "mxfp4"]) == 2
    assert "--kv-cache is of a pack's model" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--dtype", "--revision"])
def test_all_kernels_refuse_what_is_for_a_pack(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--target", "sm_86", option, "float16"]) == 2
    assert f"{option} is for a kernel pack" in capsys.readouterr().err
