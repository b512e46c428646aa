"""Makes a kernel pack: compiles what was recorded, several processes at a time, into a folder that appears whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobit.checkpoint.durable import sync_folder, write_file
from isobit.checkpoint.files import is_file, is_there
from isobit.checkpoint.occupant import require_name
from isobit.checkpoint.room import cannot_write
from isobit.errors import IsobitError, Unsupported, UsageError
from isobit.kernels.gpu.compile.processes import compilers, triton_version
from isobit.kernels.gpu.compile.request import Request, arguments_of, block_of
from isobit.kernels.gpu.packs.manifest import MANIFEST, Manifest, PackedKernel, TiledCopy, digest
from isobit.targets.spec import Target
from isobit.version import __version__

_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.[bfus](\d+)\b[^\[]*(?:\[(\d+)\]\s*)?$")


def write_pack(
    folder: Path,
    requests: Mapping[str, Request],
    target: Target,
    *,
    model: str,
    dtype: str,
    processes: int,
    progress: Callable[[], None] = lambda: None,
) -> Manifest:
    """Compiles every request and writes the pack; an older pack of that name is replaced when the new one is whole.

    Raises:
        Unsupported: Triton is not installed, the target is not NVIDIA's, or a kernel does not compile; names each.
        UsageError: the folder exists and is no pack, or cannot be written.
        CapacityError: the disk takes no more.
    """
    version = triton_version()
    if target.vendor != "nvidia":
        raise Unsupported(f"a kernel pack for {target.name}", ["packs are launched on NVIDIA GPUs only so far"])
    require_name(folder, MANIFEST)
    if is_there(folder) and not is_file(folder / MANIFEST):
        raise UsageError(f"{folder} exists and is no kernel pack: name another folder")
    codes = _compile(requests, version, processes, progress)
    kernels = tuple(kernel for kernel, _ in codes)
    manifest = Manifest(__version__, version, target.name, model, dtype, kernels)
    try:
        _publish(folder, manifest, {kernel.file: code for kernel, code in codes})
    except OSError as error:
        raise cannot_write(folder, error) from error
    return manifest


def _compile(
    requests: Mapping[str, Request], version: str, processes: int, progress: Callable[[], None]
) -> list[tuple[PackedKernel, bytes]]:
    done, failed = {}, []
    with compilers(max(1, min(processes, len(requests)))) as pool:
        futures = {pool.submit(compile_one, request, version): name for name, request in requests.items()}
        for future in as_completed(futures):
            request = requests[futures[future]]
            try:
                done[futures[future]] = future.result()
            except BrokenProcessPool as error:
                raise IsobitError("the compiler ended its process; see what it printed above") from error
            except Exception as error:  # any compiler's failure is a reason, beside those of other kernels
                failed.append(f"{request.entry} with {dict(request.constants)}: {error}")
            progress()
    if failed:
        raise Unsupported("a kernel pack for this model", failed)
    return [done[name] for name in requests]


def compile_one(request: Request, version: str) -> tuple[PackedKernel, bytes]:
    """Compiles a request, in a worker process, into what a pack holds of it."""
    from isobit.kernels.gpu.compile.build import compile_request

    kernel = compile_request(request)
    metadata, code = kernel.metadata, kernel.asm["cubin"]
    if metadata.global_scratch_size or metadata.num_ctas != 1 or metadata.launch_cooperative_grid:
        raise IsobitError(f"{request.entry} needs scratch memory, clusters or a cooperative launch, which no pack has")
    found = PackedKernel(
        request=replace(request, signature=dict(request.signature), constants=dict(request.constants)),
        key=request.key(version),
        file=f"{metadata.name}-{request.name()[:16]}.cubin",
        sha256=digest(code),
        symbol=metadata.name,
        threads=32 * metadata.num_warps,
        shared=metadata.shared,
        overlaps=bool(getattr(metadata, "launch_pdl", False)),
        parameters=parameter_sizes(kernel.asm["ptx"]),
        copies=_copies(request, getattr(metadata, "tensordesc_meta", None) or ()),
    )
    return found, code


def _copies(request: Request, described: Sequence[Mapping[str, Any]]) -> tuple[TiledCopy, ...]:
    """What the compiler says of each descriptor, in the order of the kernel's arguments."""
    types = (request.signature.get(name, "") for name in arguments_of(request.entry) if name not in request.constants)
    blocks = [block for kind in types if (block := block_of(kind)) is not None]
    return tuple(
        TiledCopy(dtype, (int(one["block_size"][0]), int(one["block_size"][1])), int(one["swizzle"]))
        for (dtype, _), one in zip(blocks, described, strict=True)
    )


def parameter_sizes(ptx: str) -> tuple[int, ...]:
    """Bytes of each parameter of the entry point of a PTX text.

    Raises:
        IsobitError: it has none, or one that is neither a number nor an array of them.
    """
    entry = re.search(r"\.visible\s+\.entry\s+\w+\s*\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise IsobitError("the portable assembly has no entry point")
    lines = [line for line in entry[1].split(",") if ".param" in line]
    sizes = [_PARAMETER.search(line) for line in lines]
    if not lines or any(size is None for size in sizes):
        raise IsobitError(f"the portable assembly has parameters of unknown size: {entry[1]}")
    return tuple(int(size[1]) // 8 * int(size[2] or 1) for size in sizes if size is not None)


def _publish(folder: Path, manifest: Manifest, codes: Mapping[str, bytes]) -> None:
    """Writes a folder beside the final one and gives it its name at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".isobit-pack-", dir=folder.parent))
    try:
        os.chmod(work, 0o755)
        for name, code in codes.items():
            write_file(work / name, code)
        write_file(work / MANIFEST, (json.dumps(manifest.as_json(), indent=1) + "\n").encode())
        sync_folder(work)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=".isobit-pack-", dir=folder.parent))
            os.replace(folder, old)
            os.replace(work, folder)
            shutil.rmtree(old)
        else:
            os.replace(work, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
