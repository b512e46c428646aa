"""A decoder layer, and the embedding in front of the first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.checkpoint.kvscales import KvScales
from isobit.errors import UsageError
from isobit.formats.qtensor import QTensor
from isobit.models.attention import Attention
from isobit.models.config import LatentAttention, LayerSpec
from isobit.models.experts import ExpertsMLP
from isobit.models.feed_forward import Experts
from isobit.models.latent import Latent
from isobit.models.linear import Linear
from isobit.models.mlp import MLP, make_mlp
from isobit.models.norms import Norm
from isobit.models.parts import Part
from isobit.models.step import Activations, Step

SelfPart = Attention | Latent | MLP | ExpertsMLP  # what adds to the stream


class Embedding(nn.Module):
    """Rows of a table, which may be quantized; also the output projection where it is tied.

    Attributes:
        weight: ``[vocab, hidden]``.
        dtype: of the activations.
        factor: what rows are multiplied by, as it is: a family that rounds it to the dtype has done so.
    """

    def __init__(self, weight: QTensor | Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
        super().__init__()
        self.weight, self.dtype, self.factor = weight, dtype, factor

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``[T]`` to ``[T, hidden]``.

        Raises:
            UsageError: an id beyond the vocabulary (not checked on GPUs, whose host would have to wait for it).
        """
        rows = self._rows(ids)
        return rows if self.factor == 1.0 else rows * self.factor

    def _rows(self, ids: Tensor) -> Tensor:
        if isinstance(self.weight, Tensor):
            try:
                return F.embedding(ids, self.weight).to(self.dtype)
            except IndexError:
                raise self._beyond() from None
        if ids.is_cpu and not 0 <= int(ids.min()) <= int(ids.max()) < self.weight.shape[0]:
            raise self._beyond()
        return self.weight.dequantize(ids).to(self.dtype)

    def _beyond(self) -> UsageError:
        return UsageError(f"there are token ids beyond the vocabulary of {self.weight.shape[0]}")


class Layer(Part):
    """Attention and MLP, each added to the residual stream, with norms in front of them and behind.

    Attributes:
        spec: what it is.
        mlp: its feed-forward part.
        norms: by their roles: ``before_attention``, ``after_attention``, ``before_mlp``, ``after_mlp``; those it has.
    """

    mlp: MLP | ExpertsMLP

    def __init__(
        self, spec: LayerSpec, layer: int, parts: dict[str, nn.Module], eps: float, kv_scales: KvScales
    ) -> None:
        super().__init__()
        self.spec = spec
        self.self_attn = (
            Latent(spec.attention, layer, parts)
            if isinstance(spec.attention, LatentAttention)
            else Attention(spec.attention, layer, parts, eps, kv_scales)
        )
        mlp = parts["experts"] if isinstance(spec.mlp, Experts) else make_mlp(spec.mlp, parts)
        self.add_module(spec.mlp_name, mlp)
        if spec.mlp_name != "mlp":
            self.__dict__["mlp"] = mlp  # as the layer calls it, whatever checkpoints do
        self.norms: dict[str, Norm] = {}
        for role, name in spec.norms.names.items():
            self.add_module(name, parts[role])
            self.norms[role] = parts[role]  # type: ignore[assignment]

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """``[T, hidden]`` to the same."""
        x, more = self.run(x, None, step)
        return x if more is None else step.ops.add(x, more)

    def run(self, x: Tensor, more: Tensor | None, step: Step) -> tuple[Tensor, Tensor | None]:
        """The same, where the sum at the end is left to whoever norms it next.

        Args:
            x, more: the stream, ``[T, hidden]``, and what is still to be added to it.

        Returns:
            Both, behind this layer.
        """
        if self.spec.parallel:
            return self._side_by_side(x if more is None else step.ops.add(x, more), step), None
        x, normed = self._normed(x, more, "before_attention", self.self_attn, step)
        x, more = self._added(x, normed, "after_attention", self.self_attn, step)
        x, normed = self._normed(x, more, "before_mlp", self.mlp, step)
        return self._added(x, normed, "after_mlp", self.mlp, step)

    def _normed(
        self, x: Tensor, more: Tensor | None, role: str, part: SelfPart, step: Step
    ) -> tuple[Tensor, Activations]:
        """The stream with what was still to be added, and what a part reads of it."""
        norm, ops = self.norms.get(role), step.ops
        if norm is None or more is None:
            x = x if more is None else ops.add(x, more)
            return x, x if norm is None else ops.norm(x, norm.spec, self._readers(part))
        return ops.add_norm(x, more, norm.spec, self._readers(part))

    def _added(
        self, x: Tensor, normed: Activations, role: str, part: SelfPart, step: Step
    ) -> tuple[Tensor, Tensor | None]:
        """The stream behind a part, and what is still to be added to it."""
        if self._adds(part, role, step) and part.ending is not None and step.ops.adds(part.ending, x):
            return part(normed, step, x), None
        return x, self._after(part(normed, step), role, step)

    def _side_by_side(self, x: Tensor, step: Step) -> Tensor:
        """Attention and MLP of the same norm of the stream; the attention's result is added first."""
        first = self.norms.get("before_attention")
        readers = (*self._readers(self.self_attn), *self._readers(self.mlp))
        if self.self_attn.observed or self.mlp.observed or isinstance(self.mlp, ExpertsMLP):  # who reads floats
            readers = ()
        normed = x if first is None else step.ops.norm(x, first.spec, readers)
        for part, role in ((self.self_attn, "after_attention"), (self.mlp, "after_mlp")):
            if self._adds(part, role, step):
                x = part(normed, step, x)
            else:
                x = step.ops.add(x, self._after(part(normed, step), role, step))
        return x

    def _adds(self, part: SelfPart, role: str, step: Step) -> bool:
        """Whether a part adds what it gives to the residual itself: nothing stands between, and nobody listens."""
        plain = role not in self.norms and self.spec.residual_factor == 1
        return step.ops.project_add is not None and plain and not part.observed

    def _after(self, x: Tensor, role: str, step: Step) -> Tensor:
        """What is added to the residual stream, in floats, of what a part gives: behind its norm, times the factor."""
        norm = self.norms.get(role)
        if norm is not None:
            x = step.ops.norm(x, norm.spec, ())  # type: ignore[assignment]
            assert isinstance(x, Tensor)
        return x if self.spec.residual_factor == 1 else x * self.spec.residual_factor

    @staticmethod
    def _readers(part: SelfPart) -> tuple[Linear, ...]:
        """What reads the input of a part; nobody while somebody listens to it, who is to see it unrounded."""
        return () if part.observed else part.readers
