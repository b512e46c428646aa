"""Which files of a model folder hold the weights, and which travel with them. Names are checked, contents are not."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from isobit.checkpoint import mlcinfo
from isobit.checkpoint.files import is_file, is_folder, is_there, why
from isobit.checkpoint.gguf import members
from isobit.checkpoint.gguf.header import is_gguf
from isobit.checkpoint.gguf.model import first_part
from isobit.checkpoint.jsonfile import read_json, short
from isobit.errors import CheckpointError

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
QMODEL = "qmodel.pt"  # of hqq
_LISTED = 8

# Files that a quantized copy of the model needs as they are. Never code (*.py), never weights, not the README: it
# describes another checkpoint. Matched without regard to case.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tokenizer_config.json",
    "tiktoken.model",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "license*",
    "licence*",
    "notice*",
    "use_policy*",
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the weights.

    Attributes:
        kind: ``safetensors``, ``bin``, ``gguf``, ``mlc`` or ``hqq``.
        files: the files, each once, in the order of their names; of GGUF the first part.
        index: the index file, if there is one.
        weight_map: tensor name -> file, from the index; None without an index.
    """

    kind: Literal["safetensors", "bin", "gguf", "mlc", "hqq"]
    files: tuple[Path, ...]
    index: Path | None = None
    weight_map: dict[str, Path] | None = None


def weight_files(folder: Path) -> WeightFiles:
    """Finds the weights of a model folder (safetensors are preferred to ``.bin`` files), or of a GGUF file.

    Raises:
        CheckpointError: there are none, or an index is wrong: it names a missing file or one outside the folder.
    """
    if is_gguf(folder):
        return WeightFiles("gguf", (folder,))
    for kind, single, index in (("safetensors", SAFETENSORS, SAFETENSORS_INDEX), ("bin", BIN, BIN_INDEX)):
        found = _indexed(folder, kind, single, index)  # type: ignore[arg-type]
        if found is not None:
            return found
    listed = mlcinfo.cache_of(folder)
    if listed is not None:
        shards = mlcinfo.shards(listed)
        for shard in shards:
            _require_inside(shard, folder, f"{listed.name} names {short(shard.name)}, which")
        return WeightFiles("mlc", tuple(sorted(shards)), listed)
    if is_there(folder / QMODEL):
        _require_inside(folder / QMODEL, folder, QMODEL)
        return WeightFiles("hqq", (folder / QMODEL,))
    raise CheckpointError(_no_weights(folder), file=folder)


def model_path(path: Path) -> Path:
    """What a model is read from: a folder; or the GGUF file that is named, or is alone in a folder without weights.

    Raises:
        CheckpointError: there are several, and nothing says which one is meant.
    """
    if not is_folder(path):
        return first_part(path)
    names = (SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX, QMODEL)
    if any(is_there(path / name) for name in names):
        return path
    found = [file for file in entries(path) if file.suffix.lower() == ".gguf" and not file.name.startswith("mmproj")]
    firsts = {first_part(file) for file in found}
    if len(firsts) > 1:
        listed = ", ".join(sorted(file.name for file in firsts)[:_LISTED])
        more = f" and {len(firsts) - _LISTED} more" if len(firsts) > _LISTED else ""
        raise CheckpointError(f"holds several GGUF files, name the one that is meant: {listed}{more}", file=path)
    return firsts.pop() if firsts else path


def companions(folder: Path) -> list[Path]:
    """Files to carry over to a quantized copy of the model, sorted; those that lead out of the folder are left out.

    Raises:
        CheckpointError: one of them is there, but is no file that can be read; or the folder cannot be listed.
    """
    return [path for path in _companions(folder) if inside(path, folder)]


def strays(folder: Path) -> list[Path]:
    """Links that have the name of a companion and lead out of the folder, sorted: what :func:`companions` leaves out.

    Raises:
        CheckpointError: as for :func:`companions`.
    """
    return [path for path in _companions(folder) if not inside(path, folder)]


def entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted.

    Raises:
        CheckpointError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"the folder cannot be listed: {why(error)}", file=folder) from None


def _companions(folder: Path) -> list[Path]:
    if is_gguf(folder):
        return members.companions(folder)
    more = folder / "additional_chat_templates"
    found = []
    for path in [*entries(folder), *(entries(more) if is_folder(more) else [])]:
        name = path.relative_to(folder).as_posix().lower()
        if path.suffix.lower() == ".py" or not any(fnmatch.fnmatchcase(name, pattern) for pattern in COMPANIONS):
            continue
        if is_file(path):
            found.append(path)
        elif name in COMPANIONS:  # license* may be a folder of licences, which nobody needs
            raise CheckpointError("is a link to nothing, or no regular file: put the file itself there", file=path)
    return found


def inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is a file of this folder once symbolic links are followed.

    Links into the blob store of a Hugging Face cache count as inside: that is how the cache stores its snapshots.
    """
    try:
        target = path.resolve()
        if target.is_relative_to(folder.resolve()):
            return True
    except (OSError, RuntimeError):  # links that lead in a circle, or to where nobody may look
        return False
    return path.is_symlink() and target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def _indexed(folder: Path, kind: Literal["safetensors", "bin"], single: str, index: str) -> WeightFiles | None:
    single_path, index_path = folder / single, folder / index
    has_single, has_index = is_there(single_path), is_there(index_path)
    if not has_single and not has_index:
        return None
    if not has_index:
        _require_inside(single_path, folder, single)
        return WeightFiles(kind, (single_path,))
    weight_map = _weight_map(folder, index_path)
    files = tuple(sorted(set(weight_map.values())))
    if has_single and single_path not in files:
        raise CheckpointError(
            f"the folder has both {single} and {index}, which names other files: remove one of the two", file=folder
        )
    return WeightFiles(kind, files, index_path, weight_map)


def _weight_map(folder: Path, index: Path) -> dict[str, Path]:
    _require_inside(index, folder, index.name)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index holds no weight_map that maps tensor names to files", file=index)
    paths: dict[object, Path] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointError("the index does not name a file for it", file=index, tensor=tensor)
        if name not in paths:
            paths[name] = _shard(folder, index, name)
    return {tensor: paths[name] for tensor, name in weight_map.items()}


def _shard(folder: Path, index: Path, name: str) -> Path:
    parts = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or parts.is_absolute() or ".." in parts.parts:
        raise CheckpointError(
            f"the index names {short(name)}, which is not the plain name of a file in this folder", file=index
        )
    path = folder / parts
    if not is_there(path):
        raise CheckpointError(f"the index names {short(name)}, which is missing: download it again", file=index)
    _require_inside(path, folder, f"the index names {short(name)}, which")
    return path


def _require_inside(path: Path, folder: Path, what: str) -> None:
    if not is_file(path):
        raise CheckpointError(f"{what} is a link to nothing, or no regular file: download it again", file=path)
    if not inside(path, folder):
        raise CheckpointError(
            f"{what} leads out of the folder, to {path.resolve()}: put the file itself into the folder", file=path
        )


def _no_weights(folder: Path) -> str:
    others = [path.name for path in entries(folder) if path.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    message = f"no weights here: neither {SAFETENSORS}, {SAFETENSORS_INDEX}, {BIN} nor {BIN_INDEX}"
    if any(name.startswith("adapter_model") for name in others):
        return f"{message}. {', '.join(others)} is an adapter: merge it into its base model first"
    if any("-of-" in name for name in others):
        return f"{message}. There are shards ({others[0]}, ...) but their index is missing: download it again"
    if others:
        return f"{message}. Found {', '.join(others)} instead"
    return (
        f"{message}. `isobit plan` needs none of them, but config.json" if is_there(folder / "config.json") else message
    )
