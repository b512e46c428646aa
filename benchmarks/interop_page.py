"""The tables of docs/interop.md and README.md, out of benchmarks/results/interop.csv."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from isobit.checkpoint.engines import DIFFERS, GARBAGE, LOADS, REFUSES
from isobit.formats.schemes import SCHEMES

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "interop.md", ROOT / "README.md"
BEGIN, END = "<!-- made by benchmarks/interop.py -->", "<!-- end -->"

Row = Mapping[str, str]

NOT_IN_FLOAT32 = "not implemented for 'Float'"  # ends what vLLM says of 4-bit products


def rows_of(path: Path) -> list[Row]:
    """The rows of the CSV."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def render(path: Path) -> None:
    """Writes both tables between their marks."""
    rows = rows_of(path)
    for page, table in ((PAGE, long_table(rows)), (README, short_table(rows))):
        before, after = split(page.read_text(encoding="utf-8"))
        page.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def split(text: str) -> tuple[str, str]:
    """What stands before and behind the marks of a page."""
    before, _, rest = text.partition(BEGIN)
    return before, rest.partition(END)[2]


def long_table(rows: Iterable[Row]) -> str:
    """Every case: what became of it, and the figures."""
    cells = {(row["case"], row["engine"], row["dtype"]): row for row in rows}
    cases = list(dict.fromkeys(case for case, _, _ in cells))
    head = "| checkpoint | transformers, float32 | vLLM, bfloat16 | vLLM, float32 |\n| --- | --- | --- | --- |\n"
    columns = (("transformers", "float32"), ("vllm", "bfloat16"), ("vllm", "float32"))
    lines = [
        [f"`{case}`" if case in SCHEMES else case, *(_cell(_of(cells, case, *one)) for one in columns)]
        for case in cases
    ]
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n" + _made(list(cells.values()))


def _of(cells: Mapping[tuple[str, str, str], Row], case: str, engine: str, dtype: str) -> Row | None:
    """The row of a cell; transformers computes some cases in bfloat16 alone."""
    other = cells.get((case, engine, "bfloat16")) if engine == "transformers" else None
    return cells.get((case, engine, dtype), other)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["reason"].endswith(NOT_IN_FLOAT32):
        return "not in float32"
    if row["result"] == REFUSES:
        return f"refuses: {_short(row['reason'])}"
    layer = f"; one layer {row['kl_layer']}" if row["kl_layer"] else ""
    figures = f"KL {row['kl']}{layer}; top-1 {row['top1']} %"
    words = {LOADS: "", DIFFERS: "**activations not rounded** ", GARBAGE: "**garbage** "}[row["result"]]
    unrounded = f"; without rounding {row['kl_layer_unrounded']}" if row["result"] == DIFFERS else ""
    other = "in bfloat16: " if row["engine"] == "transformers" and row["dtype"] == "bfloat16" else ""
    return f"{other}{words}{figures}{unrounded}"


def _short(reason: str) -> str:
    """An engine's reason without what it says in front of every one, for a cell."""
    for front in (
        "cannot implement due to: ",
        "Reasons: ",
        "QuantizationConfig Value error, ",
        "VllmConfig Value error, ",
    ):
        reason = reason.partition(front)[2] or reason
    return textwrap.shorten(reason.replace("|", "/").removesuffix(" Reasons:"), 140, placeholder=" ...")


def _made(rows: list[Row]) -> str:
    """With what, where and when the rows were made."""
    versions = dict.fromkeys(f"{row['engine']}: {row['engine_versions']}" for row in rows)
    runs = dict.fromkeys(f"{row['date']}, commit {row['commit']}, {row['hardware']}" for row in rows)
    return f"Run on {'; '.join(runs)}. {'; '.join(versions)}.\n"


def short_table(rows: Iterable[Row]) -> str:
    """Every scheme in a word for each engine."""
    found: dict[tuple[str, str], str] = {}
    for row in rows:
        found.setdefault((row["case"], row["engine"]), row["result"])
    groups: dict[tuple[str, str], list[str]] = {}
    for name in SCHEMES:
        verdicts = found[name, "transformers"], found[name, "vllm"]
        groups.setdefault(verdicts, []).append(f"`{name}`")
    lines = ["| scheme | transformers 5.23 | vLLM 0.32 on a CPU |", "| --- | --- | --- |"]
    lines += [f"| {', '.join(names)} | {one} | {other} |" for (one, other), names in groups.items()]
    return "\n".join(lines) + "\n"
