"""Loading the weights of a checkpoint into a Decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from isobit.checkpoint.gguf.wording import in_its_words
from isobit.checkpoint.kvscales import KvScales, read_kv_scales
from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.small import read_vector
from isobit.errors import CheckpointError, UsageError
from isobit.formats.caches import AUTO, CacheFormat, cache_format
from isobit.formats.qtensor import QTensor
from isobit.kernels import backends, mixtures
from isobit.kernels.grouped import Gating, Grouped, Mixture
from isobit.kernels.norm import NormSpec
from isobit.models.blueprint import HEAD, TABLE, Module, by_input, is_matrix, layer_modules, layer_prefix
from isobit.models.cache.memory import dtype_name
from isobit.models.config import LatentAttention, LayerSpec
from isobit.models.contents import Contents, contents
from isobit.models.decoder import Decoder
from isobit.models.experts import ExpertsMLP
from isobit.models.feed_forward import Experts
from isobit.models.joined import bind_linears
from isobit.models.latent import Absorbed, narrow
from isobit.models.layers import Embedding, Layer
from isobit.models.linear import Linear
from isobit.models.mlp import GatedMLP
from isobit.models.norms import Norm
from isobit.models.parts import Vector
from isobit.models.place import Place, place
from isobit.models.roles import by_role
from isobit.models.stacking import routing, stack
from isobit.shortage import shortages

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Without the CPU kernels, which use weights where they lie, float32 copies of code values are kept when all of them
# together stay below this: a small model then decodes at memory speed, while a large one is decoded in bounded memory.
# Rounding points are the same either way.
KEEP_VALUES_BELOW = 1 << 30  # bytes


@shortages()
def load_model(
    source: Path | str | Checkpoint,
    *,
    dtype: str | None = None,
    keep_values: bool | None = None,
    device: str = "cpu",
    lowering: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    context: int | None = None,
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
        kv_cache: what keys and values are stored as (:data:`isobit.formats.caches.CACHE_FORMATS`).
        batch_invariant: a token's numbers are the same bits whatever comes beside it (docs/numerics.md, section 10).
        context: the longest sequence, in tokens, if the model's own longest is not to be had.

    Raises:
        CheckpointError: tensors are missing, surplus, misshapen, or contradict the configuration.
        ModelError: the architecture or a setting is not implemented.
        UsageError: an unknown dtype or device.
        Unsupported: there is no such GPU, it has no kernel for these formats (or none that is batch-invariant), or the
            cache cannot have this one.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; activations are computed in {', '.join(DTYPES)}")
    stored = cache_format(kv_cache)
    ck = source if isinstance(source, Checkpoint) else Checkpoint.open(Path(source))
    where = place(device, lowering, alike=batch_invariant)
    found = contents(ck)
    chosen = DTYPES[dtype or where.default_dtype(found.config.dtype)]
    stored.require(dtype_name(chosen))
    if context is not None and not 1 <= context <= found.config.own_context:
        raise UsageError(f"a context of {context} tokens: this model's longest is {found.config.own_context}")
    found = replace(found, config=replace(found.config, context=context))
    with in_its_words(ck.path):
        return _Loader(found, chosen, keep_values, where, stored).decoder()


class _Loader:
    """Reads every tensor of a model exactly once."""

    def __init__(
        self, found: Contents, dtype: torch.dtype, keep_values: bool | None, where: Place, stored: CacheFormat = AUTO
    ) -> None:
        self.found, self.ck, self.config, self.expected = found, found.ck, found.config, found.expected
        self.dtype, self.place, self.stored = dtype, where, stored
        weights = sum(shape[0] * shape[1] for name, shape in self.expected.items() if is_matrix(name, shape))
        in_place = where.device != "cpu" or backends.choose(None, None, "cpu").name == "cpu"
        small = 4 * weights < KEEP_VALUES_BELOW and not in_place
        self.keep_values = small if keep_values is None else keep_values
        kv_heads = [layer.attention.kept.heads for layer in self.config.layers]
        self.kv_scales = read_kv_scales(self.ck, found.kv_scales, kv_heads)
        self.used = {*found.left_out, *found.kv_scales, *found.beside}

    def decoder(self) -> Decoder:
        read = self._weight(TABLE)
        table = replace(read, weight=self.place.weight(self._plain_on_gpu(read.weight)))
        layers = [self._layer(number, spec) for number, spec in enumerate(self.config.layers)]
        norm = self._norm(self.config.norm_name, (self.config.hidden_size,))
        head = self._head(table)
        self._require_all_used()
        factor = self.config.embedding_factor
        factor = float(torch.tensor(factor, dtype=self.dtype)) if self.config.embedding_rounded else factor
        embedding = Embedding(table.weight, self.dtype, factor)
        made = Decoder(
            self.config, embedding, layers, norm, head, self.dtype, self.place, self.found.notes, self.stored
        ).eval()
        if self.place.alike:
            made.layer_ops  # noqa: B018 - chosen now: what cannot be had is refused before anything is computed
        return made

    def _layer(self, number: int, spec: LayerSpec) -> Layer:
        parts: dict[str, nn.Module] = {}
        modules = layer_modules(spec, self.config.hidden_size)
        for group in by_input(tuple(part for part in modules if part.expert is None and part.kind != "router")):
            names = [layer_prefix(number) + module.name for module in group]
            if group[0].kind == "norm":
                parts[group[0].role] = self._norm(names[0], group[0].shape, _eps(spec, group[0].role))
            elif group[0].kind == "absorbed":
                parts[group[0].role] = self._absorbed(names[0])
            elif group[0].kind == "vector":
                parts[group[0].role] = self._numbers(names[0], *group[0].shape)
            else:
                reads = by_role(group, [self._read(name) for name in names])
                by_turns = any(role.endswith("gate") for role in reads)
                linears = dict(zip(reads, self._bind([*reads.values()], by_turns=by_turns), strict=True))
                for module, name in zip(group, names, strict=True):
                    for role in module.roles:  # of one name here, whatever checkpoints call it
                        linears[role].stored = name
                parts |= linears
        if isinstance(spec.mlp, Experts):
            parts["experts"] = self._experts(spec.mlp, layer_prefix(number), modules, parts)
        return Layer(spec, number, parts, self.config.norm_eps, self.kv_scales.get(number, KvScales()))

    def _experts(
        self, spec: Experts, prefix: str, modules: tuple[Module, ...], parts: dict[str, nn.Module]
    ) -> ExpertsMLP:
        found = {part.role: part for part in modules if part.kind == "router"}
        weights = {role: self._router(prefix, part) for role, part in found.items()}
        bias = None
        if spec.router.bias:
            bias = self.place.tensor(self._vector(f"{prefix}{found['router'].name}.bias", spec.router.experts))
        made = {
            role: self._grouped(
                [prefix + part.name for part in modules if part.expert is not None and part.role == role]
            )
            for role in ("gate", "up", "down")
        }
        mixture = Mixture(
            made["gate"], made["up"], made["down"], Gating(spec.expert.activation, spec.expert.limit),
            spec.router.on_input,
        )  # fmt: skip
        bound = mixtures.bind(
            mixture, device=self.place.device, keep_values=self.keep_values, **self.place.options
        )  # fmt: skip
        shared = None
        if spec.shared is not None:
            shared = GatedMLP(spec.shared, {role: parts[f"shared_{role}"] for role in ("gate", "up", "down")})
        gate, correction = weights.get("weight_of_shared"), parts.get("correction")
        assert correction is None or isinstance(correction, Vector)
        return ExpertsMLP(
            routing(spec.router, weights["router"], bias, None if correction is None else correction.weight), bound,
            shared, None if gate is None else gate[0], spec.names.shared,
        )  # fmt: skip

    def _router(self, prefix: str, part: Module) -> Tensor:
        """The weight of a router, in float32."""
        read = self._weight(prefix + part.name)
        if read.activations is not None:
            raise CheckpointError(
                "is a router whose input would be rounded; routers compute in float32: quantize this model again, and"
                " leave them as they are",
                file=self.ck.path,
                tensor=f"{prefix}{part.name}.weight",
            )
        numbers = read.numbers()
        if not bool(torch.isfinite(numbers).all()):  # an expert of the score NaN is chosen or not, as kernels sort
            raise CheckpointError(
                "holds NaN or infinite numbers, and experts are chosen by it",
                file=self.ck.path,
                tensor=f"{prefix}{part.name}.weight",
            )
        return self.place.tensor(numbers)

    def _grouped(self, names: list[str]) -> Grouped:
        """The matrices of all experts in one role, read one after the other."""

        def read(name: str) -> LinearWeight:
            found = self._read(name).in_order()
            if found.factor is not None:
                why = "is of an expert, and multiplies its inputs, which isobit does not do for experts"
                raise CheckpointError(why, file=self.ck.path, tensor=f"{name}.pre_quant_scale")
            return found if isinstance(found.weight, QTensor) else replace(found, weight=self._plain(found.weight))

        return stack((read(name) for name in names), names, self.ck.path, self.place)

    def _head(self, table: LinearWeight) -> Linear:
        if not self.config.tie_word_embeddings:
            return self._bind([self._read(HEAD)])[0]
        if self.ck.stored.get(TABLE) == HEAD:  # the config speaks of a linear, and of its inputs
            return self._bind([table])[0]
        return self._bind([LinearWeight(table.weight)])[0]

    def _read(self, module: str) -> LinearWeight:
        read = self._weight(module)
        if (read.bias is not None) != (f"{module}.bias" in self.expected):
            state = "surplus" if read.bias is not None else "missing"
            raise CheckpointError(f"is {state} according to config.json", file=self.ck.path, tensor=f"{module}.bias")
        return read

    def _bind(self, reads: list[LinearWeight], *, by_turns: bool = False) -> list[Linear]:
        reads = [
            read if isinstance(read.weight, QTensor) else replace(read, weight=self._plain(read.weight))
            for read in reads
        ]  # fmt: skip
        return bind_linears(
            reads, by_turns=by_turns, keep_values=self.keep_values, dtype=self.dtype, place=self.place
        )  # fmt: skip

    def _plain(self, weight: Tensor) -> Tensor:
        """An unquantized weight as it is computed with: in the compute dtype when small, else as stored."""
        return weight.to(self.dtype) if self.keep_values or self.place.device != "cpu" else weight

    def _plain_on_gpu(self, weight: QTensor | Tensor) -> QTensor | Tensor:
        """The embedding: GPU kernels take it, where it is tied, in the compute dtype, and there is one of it."""
        return weight.to(self.dtype) if isinstance(weight, Tensor) and self.place.device != "cpu" else weight

    def _weight(self, module: str) -> LinearWeight:
        read = read_linear(self.ck, module, mmap=not self.keep_values)
        self.used |= set(read.names)
        self._require_shape(f"{module}.weight", tuple(read.weight.shape))
        return read

    def _absorbed(self, module: str) -> Absorbed:
        """A matrix as numbers, however it is stored: attention multiplies queries and results by its halves."""
        numbers = self._read(module).numbers().to(self.dtype)
        return Absorbed(narrow(numbers) if self.place.device == "cpu" else self.place.tensor(numbers))

    def _norm(self, module: str, shape: tuple[int, ...], eps: float | None = None) -> Norm:
        weight = self._vector(f"{module}.weight", *shape) + self.config.norm_offset  # exactly as transformers adds it
        biased, centred = f"{module}.bias" in self.expected, self.config.norms.kind == "layer"
        bias = self.place.tensor(self._vector(f"{module}.bias", *shape)) if biased else None
        return Norm(NormSpec(self.place.tensor(weight), self.config.norm_eps if eps is None else eps, bias, centred))

    def _vector(self, name: str, *sizes: int) -> Tensor:
        self.used.add(name)
        return read_vector(self.ck, name, *sizes).float()

    def _numbers(self, name: str, *shape: int) -> Vector:
        self.used.add(name)
        return Vector(self.place.tensor(read_vector(self.ck, name, *shape).float().reshape(-1)))

    def _require_shape(self, tensor: str, shape: tuple[int, ...]) -> None:
        """A packed weight shows its width only when it is read."""
        if shape != self.expected[tensor]:
            raise CheckpointError(
                f"has shape {list(shape)}, but config.json makes it {list(self.expected[tensor])}",
                file=self.ck.path,
                tensor=tensor,
            )

    def _require_all_used(self) -> None:
        left = sorted(name for name in self.ck.tensors if name not in self.used)
        if left:
            listed = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise CheckpointError(f"has tensors that config.json has no use for: {listed}", file=self.ck.path)


def _eps(spec: LayerSpec, role: str) -> float | None:
    """The epsilon of a norm of a layer, where it is not the model's."""
    part = spec.attention
    return part.eps if isinstance(part, LatentAttention) and role in ("q_a_norm", "kv_a_norm") else None
