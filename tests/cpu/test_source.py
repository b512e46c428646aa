"""Finding models: folders, the bundled one, and hub ids with a hub that is played here."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from isobit.checkpoint import source
from isobit.errors import SourceError

FILES = [
    "config.json", "tokenizer.json", "LICENSE", "README.md", "modeling_x.py", "model.safetensors.index.json",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors",
    "pytorch_model.bin", "original/consolidated.00.pth", "onnx/model.onnx", "adapter_model.safetensors",
]  # fmt: skip


class Hub:
    """Stands for huggingface_hub: answers with files or an error, and notes what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.files, self.error, self.cached = folder, FILES, None, True
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            huggingface_hub.HfApi, "list_repo_files", lambda api, repo, revision=None: self.list(revision)
        )
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def list(self, revision: str | None) -> list[str]:
        if self.error:
            raise self.error
        return self.files

    def download(self, repo: str, **kwargs: Any) -> str:
        self.calls.append({"repo": repo} | kwargs)
        if kwargs.get("local_files_only") and not self.cached:
            raise errors.LocalEntryNotFoundError("not in the cache")
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return Hub(monkeypatch, tmp_path)


def http_error(kind: type[Exception], status: int) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} says the hub\nand much more")
    error.response = type("Response", (), {"status_code": status})()  # type: ignore[attr-defined]
    return error


def test_folders_and_files(tmp_path: Path) -> None:
    assert source.resolve(tmp_path) == tmp_path
    (tmp_path / "w.safetensors").write_text("")
    with pytest.raises(SourceError, match="is no folder and no GGUF file; name the one"):
        source.resolve(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "name", ["./no", "/no/such", "a/b/c", "typo", "..", "a/..b", "-a/b", "a/b c", "a--b/c", "", "ä/b"]
)
def test_neither_a_folder_nor_an_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    if name in ("..", ""):
        assert source.resolve(name).is_dir()
        return
    with pytest.raises(SourceError, match="no folder .* no Hugging Face id"):
        source.resolve(name)
    assert not hub.calls


def test_downloads_what_is_needed_and_no_more(hub: Hub, tmp_path: Path) -> None:
    assert source.resolve("o/n", revision="v1", token="t") == tmp_path
    (call,) = hub.calls
    assert (call["repo"], call["revision"], call["token"]) == ("o/n", "v1", "t")
    assert sorted(call["allow_patterns"]) == sorted([
        "config.json", "tokenizer.json", "LICENSE", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ])  # fmt: skip


def test_bin_files_only_without_safetensors(hub: Hub) -> None:
    hub.files = ["config.json", "pytorch_model.bin", "training_args.bin", "x.py", "tokenizer[1].json"]
    source.resolve("o/n")
    assert hub.calls[0]["allow_patterns"] == ["config.json", "pytorch_model.bin"]
    source.resolve("o/n", weights=False)
    assert hub.calls[1]["allow_patterns"] == ["config.json"]


def test_files_that_say_how_weights_are_quantized_come_with_the_configuration(hub: Hub) -> None:
    hub.files = [
        "config.json",
        "quantize_config.json",
        "hf_quant_config.json",
        "model.safetensors",
        "qmodel.pt",
        "a.gguf",
    ]
    source.resolve("o/n", weights=False)
    assert hub.calls[0]["allow_patterns"] == ["config.json", "quantize_config.json", "hf_quant_config.json"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.gguf"], "has no config.json .it holds .gguf files"),
        (["config.json", "model.safetensors.index.json"], "neither safetensors nor"),
        ([], "it holds nothing files"),
    ],
)
def test_repositories_without_a_model(hub: Hub, files: list[str], message: str) -> None:
    hub.files = files
    with pytest.raises(SourceError, match=message):
        source.resolve("o/n")
    assert not hub.calls


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.GatedRepoError, 403), "is gated: accept its licence.*HF_TOKEN"),
        (http_error(errors.RepositoryNotFoundError, 404), "no such model.*spelling.*HF_TOKEN"),
        (http_error(errors.RevisionNotFoundError, 404), "has no revision 'v9'"),
        (http_error(errors.HfHubHTTPError, 401), r"refuses access to o/n \(401\)"),
        (http_error(errors.HfHubHTTPError, 429), "cannot be downloaded: HfHubHTTPError: 429 says the hub$"),
        (OSError(errno.ENOSPC, "no space"), "disk is full.*HF_HOME"),
        (PermissionError(errno.EACCES, "denied"), "cache cannot be written"),
    ],
)
def test_each_refusal_says_what_to_do(hub: Hub, error: Exception, message: str) -> None:
    hub.error = error
    with pytest.raises(SourceError, match=message):
        source.resolve("o/n", revision="v9")
    assert not hub.calls


@pytest.mark.parametrize("error", [ConnectionError("down"), TimeoutError(), http_error(errors.HfHubHTTPError, 503)])
def test_an_unreachable_hub_leaves_the_cache(hub: Hub, tmp_path: Path, error: Exception) -> None:
    hub.error = error
    assert source.resolve("o/n") == tmp_path
    assert hub.calls[0]["local_files_only"] is True
    hub.cached = False
    with pytest.raises(SourceError, match="cannot be reached.*cache holds no complete copy"):
        source.resolve("o/n")


def test_offline_does_not_ask_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.error = AssertionError("the hub was asked")
    assert source.resolve("o/n") == tmp_path
    hub.cached = False
    with pytest.raises(SourceError, match="unset HF_HUB_OFFLINE"):
        source.resolve("o/n", revision="v1")


def test_a_file_that_is_not_there_is_called_a_file(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"^there is no file nothere\.gguf, and"):
        source.resolve("nothere.gguf")
