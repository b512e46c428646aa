"""The page of `isobit compile --support`, and what is recorded beside it: written, compared, and compared in part."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isobit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from isobit.proof.matrix import Claim, Outcome
    from isobit.targets.spec import Target

_MEND = "run `make support` and commit it"


@dataclass(frozen=True)
class Page:
    """A page and the file beside it.

    Attributes:
        path: of the page.
        kernels: of which kernels, as the first line of the file beside it says.
    """

    path: Path
    kernels: str

    @classmethod
    def of(cls, path: Path, targets: str, pattern: str | None) -> Page:
        """The page that is asked for.

        Raises:
            UsageError: nothing can be written there, or a page of other kernels lies there.
        """
        from isobit.proof import recorded

        whole = targets == "all" and pattern is None
        kernels = "all" if whole else f"--target {targets} --variant {pattern or '*'}"
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"--support {path}: {'a folder' if path.is_dir() else 'its folder is not there'}")
        beside = recorded.beside(path)
        if beside == path:
            raise UsageError(f"--support {path}: a file of that name lies beside a page; name the page, as support.md")
        if beside.is_file():
            held = recorded.kernels(_text(beside))
            if held not in (None, kernels):
                raise UsageError(f"{path} is of other kernels ({held}) than asked for ({kernels}): name another file")
        return cls(path, kernels)

    def write(self, outcomes: Sequence[Outcome], targets: Sequence[Target]) -> bool:
        """Both files anew; True."""
        for file, text in self._texts(outcomes, targets).items():
            file.write_text(text, encoding="utf-8")
        return True

    def compares(self, outcomes: Sequence[Outcome], targets: Sequence[Target]) -> bool:
        """Whether both files are what was compiled; says of each that is not."""
        texts = self._texts(outcomes, targets)
        stale = [file for file, text in texts.items() if not file.is_file() or _text(file) != text]
        for file in stale:
            _say(f"{file} is not what the kernels are now: {_MEND}")
        return not stale

    def current(self, claims: Sequence[Claim], targets: Sequence[Target]) -> Mapping[str, str] | None:
        """What is recorded of every kernel, where those are the kernels of now and the page is what comes of it.

        None, and why is said, where not.

        Raises:
            UsageError: a file is not there.
            FormatError: what is recorded cannot be read.
        """
        from isobit.kernels.gpu.compile.processes import triton_version
        from isobit.proof import recorded

        version, beside = triton_version(), recorded.beside(self.path)
        for file in (self.path, beside):
            if not file.is_file():
                raise UsageError(f"{file} is not there: `make support` writes it")
        try:
            lines = recorded.read(_text(beside))
        except FormatError as error:
            raise FormatError(f"{beside}: {error}") from None
        missing, old = recorded.strangers(claims, lines, version)
        if missing or old:
            some = f", the first {', '.join(missing[:3])}" if missing else ""
            now = f"{len(missing)} kernels of now (Triton {version}) are not recorded{some}"
            _say(f"{beside}: {now}; {old} records are of kernels that are no more: {_MEND}")
            return None
        if _page(recorded.outcomes(claims, lines, version), targets) != _text(self.path):
            _say(f"{self.path} is not what is recorded of kernels and answered by plans: {_MEND}")
            return None
        return lines

    def shows(self, compiled: Sequence[Outcome], lines: Mapping[str, str]) -> bool:
        """Whether kernels that were compiled again show what is recorded of them; says of each that does not."""
        from isobit.kernels.gpu.compile.processes import triton_version
        from isobit.proof import recorded

        wrong = recorded.differences(compiled, lines, triton_version())
        for one in wrong:
            _say(f"{one}: {_MEND}")
        return not wrong

    def _texts(self, outcomes: Sequence[Outcome], targets: Sequence[Target]) -> dict[Path, str]:
        from isobit.kernels.gpu.compile.processes import triton_version
        from isobit.proof import recorded

        record = recorded.record(outcomes, triton_version(), self.kernels)
        return {self.path: _page(outcomes, targets), recorded.beside(self.path): record}


def _text(file: Path) -> str:
    """A file's text; bytes that are none are shown, and so compare as different."""
    return file.read_text(encoding="utf-8", errors="backslashreplace")


def _say(problem: str) -> None:
    print(f"isobit: error: {problem}", file=sys.stderr)


def _page(outcomes: Sequence[Outcome], targets: Sequence[Target]) -> str:
    from isobit.kernels.gpu.compile.processes import triton_version
    from isobit.proof.page import page

    return page(outcomes, targets, triton_version(), formats(outcomes, targets), library(targets))


def formats(outcomes: Sequence[Outcome], targets: Sequence[Target]) -> dict[str, dict[str, str]]:
    """For every scheme and target: what a plan answers for its linears, and what the code of that kernel shows."""
    from isobit.formats.schemes import SCHEMES
    from isobit.legalize.ops import Lowering
    from isobit.legalize.planner import decide, sample_ops

    shown = {(one.claim.variant, one.claim.target): one.evidence.matrix() for one in outcomes if one.evidence}
    cells: dict[str, dict[str, str]] = {}
    for name, row in SCHEMES.items():
        for target in targets:
            decision = decide(sample_ops(row, target)[0], target)
            cell = "refused"
            if isinstance(decision, Lowering):
                matrix = next(
                    (shown[one, target.name] for one in decision.kernels[::-1] if (one, target.name) in shown), ()
                )
                cell = f"{decision.action} ({matrix[0] if matrix else 'no matrix unit'})"
            cells.setdefault(name, {})[target.name] = cell
    return cells


def library(targets: Sequence[Target]) -> dict[str, list[str]]:
    """PyTorch's products among the kernels, and the targets on which they are chosen."""
    from isobit.kernels.gpu.rows import VARIANTS

    rows = [row for row in VARIANTS if row.library]
    return {row.name: [target.name for target in targets if row.requires(target) is None] for row in rows}
