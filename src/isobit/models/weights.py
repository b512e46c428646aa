"""Weights of a model: whether a checkpoint has all tensors it needs, and loading them into a Decoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from isobit.checkpoint import layout
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, UsageError
from isobit.formats.qtensor import QTensor
from isobit.kernels import backends
from isobit.models.config import ModelConfig
from isobit.models.decoder import Decoder, Layer
from isobit.models.layers import Attention, Embedding, GatedMLP, Linear, RMSNorm
from isobit.models.place import Place, place
from isobit.models.shapes import expected_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Without the CPU kernels, which use weights where they lie, float32 copies of code values are kept when all of them
# together stay below this: a small model then decodes at memory speed, while a large one is decoded in bounded memory.
# Rounding points are the same either way.
KEEP_VALUES_BELOW = 1 << 30  # bytes

# Leftovers of old checkpoints that are derived from the configuration, and so are not needed.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")


def load_model(
    source: Path | str | Checkpoint,
    *,
    dtype: str | None = None,
    keep_values: bool | None = None,
    device: str = "cpu",
    lowering: str | None = None,
) -> Decoder:
    """Loads a checkpoint, quantized or not.

    What each weight is, its own tensors say, so that a checkpoint may mix formats.

    Args:
        source: a folder, or an opened checkpoint.
        dtype: what activations are computed in: ``float32`` (the default on a CPU), ``bfloat16`` or ``float16`` (on a
            GPU the default is the dtype in config.json, or float16 where there is no bfloat16 arithmetic).
        keep_values: keep float32 code values in memory (faster, four bytes a weight); None to do so below 1 GiB
            where there are no CPU kernels, which use weights as they are stored.
        device: ``cpu`` or ``cuda``.
        lowering: target whose lowering runs on the GPU; None for the GPU's own.

    Raises:
        CheckpointError: tensors are missing, surplus, misshapen, or contradict the configuration.
        ModelError: the architecture or a setting is not implemented.
        UsageError: an unknown dtype or device.
        Unsupported: there is no such GPU, or it has no kernel for these formats.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; activations are computed in {', '.join(DTYPES)}")
    ck = source if isinstance(source, Checkpoint) else Checkpoint.open(Path(source))
    ck.quantization  # noqa: B018 -- refuses by name what isobit does not read, before tensors are missed
    where = place(device, lowering)
    stored = str(ck.config.get("dtype") or ck.config.get("torch_dtype")).removeprefix("torch.")
    chosen = DTYPES[dtype or where.default_dtype(stored)]
    return _Loader(ck, ModelConfig.from_hf(ck.config), chosen, keep_values, where).decoder()


class _Loader:
    """Reads every tensor of a model exactly once."""

    def __init__(
        self, ck: Checkpoint, config: ModelConfig, dtype: torch.dtype, keep_values: bool | None, where: Place
    ) -> None:
        self.ck, self.config, self.dtype, self.place = ck, config, dtype, where
        self.expected = expected_tensors(config)
        weights = sum(shape[0] * shape[1] for shape in self.expected.values() if len(shape) == 2)
        in_place = where.device != "cpu" or backends.choose(None, None, "cpu").name == "cpu"
        small = 4 * weights < KEEP_VALUES_BELOW and not in_place
        self.keep_values = small if keep_values is None else keep_values
        self.used: set[str] = set()

    def decoder(self) -> Decoder:
        self._require_modules()
        table = self._weight("model.embed_tokens")
        table = layout.LinearWeight(self.place.weight(self._plain_on_gpu(table.weight)))
        layers = [self._layer(index) for index in range(self.config.num_layers)]
        norm = self._norm("model.norm")
        head = self._head(table)
        self._require_all_used()
        notes = (*self.config.notes, *self.ck.notes)
        return Decoder(
            self.config, Embedding(table.weight, self.dtype), layers, norm, head, self.dtype, self.place, notes
        ).eval()

    def _layer(self, index: int) -> Layer:
        prefix = f"model.layers.{index}."
        attention: dict[str, nn.Module] = {
            f"{name}_proj": self._linear(f"{prefix}self_attn.{name}_proj") for name in "qkvo"
        }
        if self.config.qk_norm == "head":
            attention |= {name: self._norm(f"{prefix}self_attn.{name}") for name in ("q_norm", "k_norm")}
        mlp: dict[str, nn.Module] = {
            f"{name}_proj": self._linear(f"{prefix}mlp.{name}_proj") for name in ("gate", "up", "down")
        }
        return Layer(
            Attention(self.config, index, attention),
            GatedMLP(mlp),
            self._norm(f"{prefix}input_layernorm"),
            self._norm(f"{prefix}post_attention_layernorm"),
        )

    def _head(self, table: layout.LinearWeight) -> Linear:
        if not self.config.tie_word_embeddings:
            return self._linear("lm_head")
        # Some tools store a tied output projection as well: it is the same matrix and is not needed.
        self.used |= {name for name in self.ck.tensors if name.rpartition(".")[0] == "lm_head"}
        return self._bind(layout.LinearWeight(table.weight))

    def _linear(self, module: str) -> Linear:
        read = self._weight(module)
        if (read.bias is not None) != (f"{module}.bias" in self.expected):
            state = "surplus" if read.bias is not None else "missing"
            raise CheckpointError(f"is {state} according to config.json", file=self.ck.path, tensor=f"{module}.bias")
        return self._bind(read)

    def _bind(self, read: layout.LinearWeight) -> Linear:
        weight = read.weight if isinstance(read.weight, QTensor) else self._plain(read.weight)
        return Linear(
            weight, read.activations, read.input_scale, read.bias, keep_values=self.keep_values, dtype=self.dtype,
            place=self.place,
        )  # fmt: skip

    def _plain(self, weight: Tensor) -> Tensor:
        """An unquantized weight as it is computed with: in the compute dtype when small, else as stored."""
        return weight.to(self.dtype) if self.keep_values or self.place.device != "cpu" else weight

    def _plain_on_gpu(self, weight: QTensor | Tensor) -> QTensor | Tensor:
        """The embedding: GPU kernels take it, where it is tied, in the compute dtype, and there is one of it."""
        return weight.to(self.dtype) if isinstance(weight, Tensor) and self.place.device != "cpu" else weight

    def _weight(self, module: str) -> layout.LinearWeight:
        read = layout.read_linear(self.ck, module, mmap=not self.keep_values)
        self.used |= set(read.names)
        self._require_shape(f"{module}.weight", tuple(read.weight.shape))
        return read

    def _norm(self, module: str) -> RMSNorm:
        name = f"{module}.weight"
        self.used.add(name)
        weight = self.ck.read(name)
        self._require_shape(name, tuple(weight.shape))
        return RMSNorm(self.place.tensor(weight), self.config.norm_eps)

    def _require_shape(self, tensor: str, shape: tuple[int, ...]) -> None:
        if shape != self.expected[tensor]:
            raise CheckpointError(
                f"has shape {list(shape)}, but config.json makes it {list(self.expected[tensor])}",
                file=self.ck.path,
                tensor=tensor,
            )

    def _require_modules(self) -> None:
        """Every module has a tensor, before anything large is read."""
        there = {name.rpartition(".")[0] for name in self.ck.tensors}
        missing = sorted({name.rpartition(".")[0] for name in self.expected} - there)
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise CheckpointError(f"there are no tensors of {listed}, which config.json asks for", file=self.ck.path)

    def _require_all_used(self) -> None:
        left = sorted(name for name in self.ck.tensors if name not in self.used and not name.endswith(IGNORED_SUFFIXES))
        if left:
            listed = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise CheckpointError(f"has tensors that config.json has no use for: {listed}", file=self.ck.path)
