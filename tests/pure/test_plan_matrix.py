"""The whole matrix of schemes, ops and targets, as a file that a diff shows; and what must hold of every answer in it.

After a change that is meant: ``python tests/pure/test_plan_matrix.py`` writes the file anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from isobit.formats.schemes import SCHEMES
from isobit.legalize.ops import Decision, Refusal
from isobit.legalize.planner import matrix, verify
from isobit.targets.table import TARGETS

GOLDEN = Path(__file__).parents[1] / "golden" / "plans.txt"
COMMAND = "python tests/pure/test_plan_matrix.py"


def lines() -> Iterator[str]:
    """Scheme, op, target, action, how, then notes or reasons: one answer a line."""
    yield f"# scheme | op | target | action | how | reason | notes. Written by: {COMMAND}"
    for row, op, target, answer in matrix(SCHEMES.values(), TARGETS.values()):
        yield " | ".join((row.name if row else "any", op.name, target.name, answer.action, *_parts(answer)))


def _parts(answer: Decision) -> tuple[str, ...]:
    if isinstance(answer, Refusal):
        return ("; ".join(answer.reasons), f"instead: {answer.instead or 'nothing'}")
    return answer.how, answer.reason, "; ".join(answer.notes)


def test_the_matrix_is_the_golden_file() -> None:
    expected = GOLDEN.read_text(encoding="utf-8").splitlines()
    found = list(lines())
    changed = [line for line in found if line not in set(expected)]
    gone = [line for line in expected if line not in set(found)]
    assert found == expected, (
        f"if this is meant, run: {COMMAND}\nnew:\n" + "\n".join(changed[:5]) + ("\ngone:\n" + "\n".join(gone[:5]))
    )


def test_no_answer_moves_a_rounding_point() -> None:
    answers = list(matrix(SCHEMES.values(), TARGETS.values()))
    assert len(answers) == len(TARGETS) * (3 + 2 * len(SCHEMES))
    problems = [problem for _, op, target, answer in answers for problem in verify(op, answer)]
    assert problems == []


def test_a_scheme_is_never_relaxed_unasked() -> None:
    assert all(answer.action != "relaxed" for *_, answer in matrix(SCHEMES.values(), TARGETS.values()))


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(lines()) + "\n", encoding="utf-8")
