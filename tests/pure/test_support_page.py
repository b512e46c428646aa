"""docs/support.md against the tables that it was made from. Whether its figures are current, `make proof` says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from isobit.proof.claims import all_rows, claims
from isobit.targets.table import TARGETS

PAGE = Path(__file__).parents[2] / "docs" / "support.md"


def sections() -> dict[str, list[list[str]]]:
    """Target to the cells of its table's rows."""
    found = {}
    for part in PAGE.read_text(encoding="utf-8").split("\n### ")[1:]:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        found[part.partition(":")[0]] = rows[2:]
    return found


@pytest.mark.parametrize("name", [name for name, row in TARGETS.items() if row.backend])
def test_the_page_lists_what_the_tables_claim(name: str) -> None:
    claimed = {one.variant for one in claims(all_rows(), [TARGETS[name]])}
    listed = {row[0] for row in sections()[name]}
    assert listed == claimed, "run `make support` and commit docs/support.md"


def test_no_hot_loop_on_the_page_spills_and_everything_compiles() -> None:
    rows = [(target, row) for target, found in sections().items() for row in found]
    assert len(rows) > 500
    for target, (kernel, _, registers, _, spills) in rows:
        assert re.fullmatch(r"0( \+ \d+)?", spills), f"{kernel} on {target}"
        assert re.fullmatch(r"\d+( / \d+)*", registers), f"{kernel} on {target}"  # a number for each configuration
