"""The small model that ships with the package, and the text it is measured on.

The model is a Llama decoder for Python source, trained by the scripts of the repository's ``training`` folder. The text
is a set of standard-library modules that its training data does not contain; static activation scales are calibrated on
it, too, where nobody names another. Nothing here imports torch.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["HELDOUT_NAME", "heldout_path", "model_path"]

HELDOUT_NAME = "the bundled held-out Python modules"


def model_path() -> Path:
    """Folder of the bundled checkpoint: config.json, model.safetensors, tokenizer, model card.

    Raises FileNotFoundError where the installation lacks the file.
    """
    return _shipped("model", "model.safetensors").parent


def heldout_path() -> Path:
    """UTF-8 text file of the held-out standard-library modules; its first lines name source and licence.

    Raises FileNotFoundError where the installation lacks the file.
    """
    return _shipped("heldout", "stdlib.txt")


def _shipped(folder: str, name: str) -> Path:
    # A checkpoint is memory-mapped by path, so it has to be a real file: a package imported from a zip has none.
    path = Path(str(resources.files(__name__).joinpath(folder, name)))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: this installation of isobit is incomplete, install it again")
    return path
