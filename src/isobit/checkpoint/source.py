"""Where a model comes from: a local folder, the bundled model, or a Hugging Face id through its cache."""

from __future__ import annotations

import errno
import fnmatch
import glob
import re
from pathlib import Path
from typing import NoReturn

from isobit.checkpoint.files import is_folder, is_there
from isobit.checkpoint.folder import BIN_INDEX, COMPANIONS, SAFETENSORS_INDEX, model_path
from isobit.checkpoint.gguf.header import is_gguf
from isobit.checkpoint.methods import SIDE_FILES
from isobit.checkpoint.occupant import require_finished
from isobit.checkpoint.pipelines import language_model
from isobit.errors import SourceError

BUNDLED = "bundled"

# owner/name, as the hub allows them; "--" and ".." are reserved.
_HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_NOT_WEIGHTS = ("consolidated*", "adapter*", "*lora*", "optimizer*", "training_args*")


def resolve(model: str | Path, *, revision: str | None = None, token: str | None = None, weights: bool = True) -> Path:
    """The folder of a model, or its GGUF file.

    Args:
        model: a folder (of a pipeline its language model is meant); a GGUF file, or a folder with one and no other
            weights; ``bundled``; or a Hugging Face id (``owner/name``), which is downloaded into its cache once.
            ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` are honoured.
        revision: branch, tag or commit of a Hugging Face id.
        token: access token; by default the one of ``HF_TOKEN`` or of a login.
        weights: False downloads configuration and tokenizer only.

    Raises:
        SourceError: it cannot be found or downloaded; says what to do.
        CheckpointError: it is an unfinished output of ``isobit quantize``.
    """
    name = str(model)
    path = expanded(model)
    if is_folder(path):
        path = language_model(path)
        require_finished(path)
        return model_path(path)
    if name == BUNDLED:
        return _bundled()
    if is_gguf(path):
        return model_path(path)
    if is_there(path):
        message = f"{name} is no folder and no GGUF file; name the one that holds the model's config.json and weights"
        raise SourceError(message)
    if not _HUB_ID.fullmatch(name):
        raise SourceError(f"{_missing(_short(name))}, and it is no Hugging Face id either (those look like owner/name)")
    return _from_hub(name, revision, token, weights)


def expanded(model: str | Path) -> Path:
    """A path with ``~`` and ``~user`` replaced.

    Raises:
        SourceError: there is no such user.
    """
    try:
        return Path(model).expanduser()
    except RuntimeError:
        raise SourceError(f"there is no folder {model}: nobody of that name has a home folder here") from None


def _missing(model: str) -> str:
    """That it is not there, as what it is called."""
    return f"there is no {'file' if model.lower().endswith('.gguf') else 'folder'} {model}"


def _bundled() -> Path:
    from isobit.bundled import model_path

    return Path(model_path())


def _from_hub(model: str, revision: str | None, token: str | None, weights: bool) -> Path:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        files = huggingface_hub.HfApi(token=token).list_repo_files(model, revision=revision)
        patterns = [glob.escape(file) for file in wanted_files(model, files, weights)]
        return Path(huggingface_hub.snapshot_download(model, revision=revision, token=token, allow_patterns=patterns))
    except SourceError:
        raise
    except Exception as error:
        if not _is_unreachable(error):
            _explain(error, model, revision)
        return _from_cache(model, revision, weights, error)


def _from_cache(model: str, revision: str | None, weights: bool, reason: Exception) -> Path:
    """What the cache has of a model, while the hub cannot be reached."""
    import huggingface_hub

    patterns = ["config.json", *SIDE_FILES, *COMPANIONS] + (
        ["model*.safetensors", SAFETENSORS_INDEX] if weights else []
    )
    try:
        return Path(
            huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=patterns)
        )
    except (OSError, ValueError) as error:
        shown = f" ({_first_line(reason)})" if str(reason) else ""
        at = f" at revision {revision}" if revision else ""
        raise SourceError(
            f"{_missing(model)}, the hub cannot be reached{shown}, and the cache holds no complete copy of"
            f" {model}{at}: connect to the network (or unset HF_HUB_OFFLINE), or name a local folder"
        ) from error


def wanted_files(model: str, files: list[str], weights: bool) -> list[str]:
    """Which of a repository's files are needed: never code, and ``.bin`` files only where there are no safetensors.

    Raises:
        SourceError: they hold no model that isobit can read.
    """
    if "config.json" not in files:
        kinds = ", ".join(sorted({Path(file).suffix for file in files if Path(file).suffix})) or "nothing"
        raise SourceError(f"{model} has no config.json (it holds {kinds} files): it is not a transformers model")
    wanted = ["config.json", *(file for file in files if file in SIDE_FILES)]
    wanted += [file for file in files if _matches(file, COMPANIONS) and not file.endswith(".py")]
    if not weights:
        return wanted
    top = [file for file in files if "/" not in file and not _matches(file, _NOT_WEIGHTS)]
    found = [file for file in top if file.endswith(".safetensors") or file == SAFETENSORS_INDEX]
    if not any(file.endswith(".safetensors") for file in found):
        found = [file for file in top if fnmatch.fnmatch(file, "pytorch_model*.bin") or file == BIN_INDEX]
    if not any(not file.endswith(".json") for file in found):
        raise SourceError(f"{model} has neither safetensors nor pytorch_model*.bin files at its top level")
    return wanted + found


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(file.lower(), pattern) for pattern in patterns)


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub did not answer at all (as against answering no)."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, (OfflineModeIsEnabled, ConnectionError, TimeoutError)):
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    names = {kind.__name__ for kind in type(error).__mro__}  # of requests or httpx: either may be the hub's client
    return (isinstance(status, int) and status >= 500) or bool(
        names & {"ConnectError", "ConnectTimeout", "ReadTimeout", "TimeoutException", "NetworkError", "Timeout"}
    )


def _explain(error: Exception, model: str, revision: str | None) -> NoReturn:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        advice = "is gated: accept its licence on its page while logged in, then set HF_TOKEN or run 'hf auth login'"
        raise SourceError(f"{model} {advice}") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise SourceError(f"{model} has no revision {revision!r}: name a branch, tag or commit of it") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise SourceError(
            f"{_missing(model)}, and the hub has no such model or will not show it:"
            " check the spelling; if it is private, set HF_TOKEN or run 'hf auth login'"
        ) from error
    if status in (401, 403):
        raise SourceError(
            f"the hub refuses access to {model} ({status}): check HF_TOKEN and its permissions"
        ) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise SourceError(
            f"the disk is full while downloading {model}: free some space, or set HF_HOME to a larger disk"
        ) from error
    if isinstance(error, PermissionError):
        raise SourceError(
            f"the Hugging Face cache cannot be written ({error}): set HF_HOME to a folder of yours"
        ) from error
    raise SourceError(f"{model} cannot be downloaded: {_first_line(error)}") from error


def _short(name: str) -> str:
    return name if len(name) <= 300 else f"{name[:300]}... ({len(name)} characters)"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
