"""Who speaks: an embedding by CAM++, which onnxruntime runs. A graph of ONNX is data: nothing of it is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isobit.checkpoint.files import read_file
from isobit.checkpoint.jsonfile import short
from isobit.errors import CheckpointError, Unsupported
from isobit.speech.spectra import kaldi_bank

_LARGEST = 1 << 30  # bytes


class SpeakerModel(Protocol):
    """What tells speakers apart."""

    def __call__(self, bank: NDArray[np.float32]) -> NDArray[np.float32]:
        """An embedding of a filter bank ``[T, 80]`` whose means over time were taken off."""


class Campplus:
    """The model of a file.

    Raises:
        Unsupported: onnxruntime is not installed.
        CheckpointError: the file is damaged, or wants other inputs.
    """

    def __init__(self, path: Path, size: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise Unsupported(
                "telling speakers apart", ["onnxruntime is not installed"], "pip install 'isobit[speech]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._path, self._size = path, size
        data = read_file(path, _LARGEST)  # as bytes: so it cannot name other files
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
        except Exception as error:  # of its own classes, which no module of it names for good
            raise CheckpointError(f"cannot be read by onnxruntime: {_first(error)}", file=path) from None

    def __call__(self, bank: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`SpeakerModel`."""
        try:
            found = np.asarray(self._session.run(None, {self._input: bank[None]})[0], np.float32).reshape(-1)
        except Exception as error:
            raise CheckpointError(f"cannot be run by onnxruntime: {_first(error)}", file=self._path) from None
        if len(found) != self._size or not np.isfinite(found).all():
            raise CheckpointError(
                f"gives {len(found)} numbers; {self._size} finite ones were expected", file=self._path
            )
        return found


def _first(error: Exception) -> str:
    return short((str(error).strip().splitlines() or [type(error).__name__])[0])


def embedding(model: SpeakerModel, samples: NDArray[np.float64]) -> NDArray[np.float32]:
    """The embedding of samples at 16 kHz."""
    bank = kaldi_bank(samples)
    return model((bank - bank.mean(axis=0, keepdims=True)).astype(np.float32))
