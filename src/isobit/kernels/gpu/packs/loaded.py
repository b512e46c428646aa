"""Opening a kernel pack, and the one that is in use. Refuses whatever could run other code than the sources say."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isobit.errors import CheckpointError, Unsupported
from isobit.kernels.gpu.compile.request import Request
from isobit.kernels.gpu.packs.manifest import Manifest, PackedKernel, digest, read_manifest
from isobit.targets.table import TARGETS

if TYPE_CHECKING:
    from isobit.kernels.gpu.packs.cuda import Launcher


class Pack:
    """A pack whose every file has been checked.

    Attributes:
        folder: where it is.
        manifest: its description.
        missed: names of kernels that were asked for and are not in it.
    """

    def __init__(self, folder: Path, manifest: Manifest, code: dict[str, bytes]) -> None:
        self.folder, self.manifest, self._code = folder, manifest, code
        self._kernels = {kernel.request.name(): kernel for kernel in manifest.kernels}
        self._launchers: dict[str, Launcher] = {}
        self.missed: list[str] = []

    def find(self, request: Request, names: tuple[str, ...]) -> Launcher | None:
        """What launches a kernel, or None if the pack has not got it, which is said once on stderr.

        Args:
            request: what is to be launched.
            names: every argument of the kernel, in order.
        """
        name = request.name()
        if name not in self._kernels:
            self._report(request, name)
            return None
        if name not in self._launchers:
            from isobit.kernels.gpu.packs.cuda import Launcher

            kernel = self._kernels[name]
            self._launchers[name] = Launcher(kernel, self._code[kernel.file], names)
        return self._launchers[name]

    def _report(self, request: Request, name: str) -> None:
        if name in self.missed:
            return
        self.missed.append(name)
        print(
            f"isobit: warning: {request.entry} with {dict(request.constants)} is not in {self.folder}: "
            "it is compiled now; make the pack again for this model",
            file=sys.stderr,
        )


def load_pack(folder: Path | str, *, target: str | None = None) -> Pack:
    """Opens a pack.

    Args:
        folder: the pack.
        target: name of the target that it is to run on; None for no check.

    Raises:
        CheckpointError: it is no pack, a file is missing or damaged, or the kernels' sources have changed since.
        Unsupported: it is for another target, or was made by another version of Triton than is installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    reasons = []
    if target is not None and manifest.target != target:
        reasons.append(f"it was made for {manifest.target}, and this is {target}")
    installed = _installed_triton()
    if installed is not None and installed != manifest.triton:
        reasons.append(f"it was made by Triton {manifest.triton}, and {installed} is installed")
    if reasons:
        again = f"isobit compile MODEL --target {target or manifest.target} -o PACK"
        raise Unsupported(f"the kernel pack {folder}", reasons, again)
    return Pack(folder, manifest, {kernel.file: _code(folder, kernel, manifest.triton) for kernel in manifest.kernels})


def _installed_triton() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None  # a pack needs none


def _code(folder: Path, kernel: PackedKernel, triton: str) -> bytes:
    path = folder / kernel.file
    try:
        code = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}; make the pack again", file=path) from error
    if digest(code) != kernel.sha256:
        raise CheckpointError("is not what the manifest says (SHA-256 differs): make the pack again", file=path)
    if kernel.request.key(triton) != kernel.key:
        raise CheckpointError(
            f"was compiled from other sources of {kernel.request.entry} than are installed: make the pack again",
            file=path,
        )
    return code


_active: Pack | None = None
_looked = False


def use(pack: Pack | None) -> None:
    """Makes a pack the one that launches ask, or none."""
    global _active, _looked
    _active, _looked = pack, True


def active() -> Pack | None:
    """The pack in use: what ``use`` said, else the one in ISOBIT_PACK, checked against the card at hand.

    Raises:
        CheckpointError, Unsupported: as ``load_pack``.
    """
    if not _looked:
        folder = os.environ.get("ISOBIT_PACK")
        use(load_pack(folder, target=_here()) if folder else None)
    return _active


def _here() -> str:
    import torch

    if not torch.cuda.is_available() or torch.version.hip is not None:
        raise Unsupported("a kernel pack", ["packs run on NVIDIA GPUs, and none is here"])
    major, minor = torch.cuda.get_device_capability()
    name = f"sm_{major}{minor}"
    return name if name in TARGETS else f"{name} (unknown)"
