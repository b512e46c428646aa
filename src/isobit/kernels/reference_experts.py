"""A mixture of experts in plain torch: the law that faster kernels are held to (docs/numerics.md, section 11)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.errors import Unsupported
from isobit.kernels import reference
from isobit.kernels.grouped import Gating, Grouped, Listener, Mixture, Routes, Routing
from isobit.kernels.rounded import Rounded

AT_ONCE = 256 << 20  # bytes of the experts' results that are held before they are added up
SLOPE = 1.702  # of the sigmoid in gpt-oss's gate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
}


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
    "softmax-behind": lambda logits: logits,
    "sparsemixer": lambda logits: logits,
}


def route(routing: Routing, x: Tensor) -> Routes:
    """The experts of each token and their weights.

    Of equal scores the expert (or group) with the lower number is chosen, and stands in front.

    Args:
        routing: how they are chosen.
        x: ``[T, K]``.
    """
    logits = F.linear(x.float(), routing.weight, routing.bias)
    scores = _SCORES[routing.scores](logits)
    choice = scores if routing.correction is None else scores + routing.correction
    if routing.groups > 1:
        choice = _of_good_groups(choice, routing)
    ids = _best(choice, routing.active)
    weights = scores.gather(-1, ids)
    if routing.scores == "softmax-behind":
        weights = torch.softmax(weights, dim=-1)
    if routing.scores == "sparsemixer":
        weights = _sparsely_mixed(scores, ids, routing.tolerance)
    if routing.renormalize:
        weights = weights / _summed(weights).clamp(min=routing.least_sum)
    return Routes(ids.to(torch.int32), weights * routing.scale)


def _sparsely_mixed(logits: Tensor, ids: Tensor, tolerance: float) -> Tensor:
    """SparseMixer's weights of the chosen experts ``ids [T, active]``; see ``models/feed_forward.Router``."""
    left, weights = logits, []
    for slot in range(ids.shape[-1]):
        own = ids[..., slot : slot + 1]
        best = logits.gather(-1, own)
        far = (best - logits) / logits.abs().clamp(min=best) > tolerance  # 0 / 0 is not
        powers = (left.masked_fill(far, float("-inf")) - best).exp()
        weights.append(1 / powers.sum(-1, keepdim=True))
        left = left.scatter(-1, own, float("-inf"))
    return torch.cat(weights, dim=-1)


def _best(scores: Tensor, count: int) -> Tensor:
    """The indices of the best, the very best first; of equal ones the lower index, which ``topk`` does not promise."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :count]


def _of_good_groups(choice: Tensor, routing: Routing) -> Tensor:
    """The scores with those of experts in groups that do not take part at minus infinity."""
    grouped = choice.view(*choice.shape[:-1], routing.groups, choice.shape[-1] // routing.groups)
    if routing.group_score == "max":
        quality = grouped.amax(-1)
    else:
        quality = _summed(grouped.gather(-1, _best(grouped, 2))).squeeze(-1)
    good = torch.zeros_like(quality, dtype=torch.bool).scatter_(-1, _best(quality, routing.active_groups), True)
    return grouped.masked_fill(~good.unsqueeze(-1), float("-inf")).flatten(-2)


def _summed(values: Tensor) -> Tensor:
    """The sum over the last axis, kept, one after the other."""
    total = values[..., :1]
    for slot in range(1, values.shape[-1]):
        total = total + values[..., slot : slot + 1]
    return total


def gated(gate: Tensor, up: Tensor, gating: Gating) -> Tensor:
    """What goes into down."""
    if gating.limit is None:
        return ACTIVATIONS[gating.activation](gate) * up
    gate, up = gate.clamp(max=gating.limit), up.clamp(-gating.limit, gating.limit)
    return (up + 1) * (gate * torch.sigmoid(gate * SLOPE))


def bind(mixture: Mixture, *, keep_values: bool = False, alike: bool = False) -> ReferenceMixture:
    """The experts of a layer.

    Args:
        mixture: they.
        keep_values: decode the weights once and keep them in float32.
        alike: that a row gives the same bits in any number of rows cannot be had here.

    Raises:
        Unsupported: it was asked for all the same.
    """
    if alike:
        raise Unsupported(
            "batch-invariant experts", ["the order of PyTorch's sums depends on how many tokens come at once"]
        )
    return ReferenceMixture(mixture, keep_values)


class ReferenceMixture:
    """See ``bind``; a :class:`isobit.kernels.grouped.BoundMixture`."""

    def __init__(self, mixture: Mixture, keep_values: bool) -> None:
        self.mixture = mixture
        self._gate, self._up, self._down = (_Experts(part, keep_values) for part in mixture.parts)

    def __call__(self, x: Tensor, routes: Routes, listener: Listener | None = None) -> Tensor:
        """``[T, K]`` to the same."""
        width = self.mixture.down.rows
        step = max(1, AT_ONCE // (4 * width * routes.ids.shape[-1]))
        parts = [
            self._some(x[begin : begin + step], routes.ids[begin : begin + step], routes.weights[begin : begin + step],
                       listener)
            for begin in range(0, len(x), step)
        ]  # fmt: skip
        return torch.cat(parts) if parts else x.new_empty(0, width)

    def _some(self, x: Tensor, ids: Tensor, weights: Tensor, listener: Listener | None) -> Tensor:
        results = torch.empty(*ids.shape, self.mixture.down.rows, device=x.device)
        on_input = self.mixture.on_input
        # Rounded once for all experts of a token, unless each is given something else.
        shared = None if on_input else _shared(self._gate, self._up, x)
        for expert, tokens, slots in _visits(ids):
            given = x[tokens]
            if on_input:
                given = (given * weights[tokens, slots, None]).to(x.dtype)
            rounded = [None if part is None else _picked(part, tokens) for part in shared or (None, None)]
            gate, up = (
                part(expert, given if codes is None else codes)
                for part, codes in zip((self._gate, self._up), rounded, strict=True)
            )
            inner = gated(gate, up, self.mixture.gating)
            if listener is not None:
                listener(inner)
            results[tokens, slots] = self._down(expert, inner, wide=True)
        total = torch.zeros(len(x), self.mixture.down.rows, device=x.device)
        for slot in range(ids.shape[-1]):
            part = results[:, slot]
            total += part if on_input else weights[:, slot, None] * part
        return total.to(x.dtype)


class _Experts:
    """The linears of one role."""

    def __init__(self, part: Grouped, keep: bool) -> None:
        self.part = part
        self._bound = [self._bind(number, keep) for number in range(part.experts)]

    def _bind(self, number: int, keep: bool) -> reference.ReferenceLinear:
        part = self.part
        return reference.bind(
            part.expert(number), part.activations, part.scale_of(number),
            None if part.bias is None else part.bias[number], keep_values=keep,
        )  # fmt: skip

    @property
    def rounder(self) -> reference.ReferenceRounding | None:
        """What rounds the input of all experts; None where it is not rounded, or not alike."""
        scale = self.part.input_scale
        alike = scale is None or len(scale) == 1
        return self._bound[0].rounding(1, torch.float32) if alike else None

    def __call__(self, number: int, x: Tensor | Rounded, *, wide: bool = False) -> Tensor:
        """One expert's result, in the dtype of ``x``, or in float32 where it is asked for ``wide``."""
        linear = self._bound[number]
        rounder = linear.rounding(1, torch.float32)
        if wide and isinstance(x, Tensor):
            x = x.float() if rounder is None else replace(rounder(x), dtype=torch.float32)
        return linear(x)


def _shared(gate: _Experts, up: _Experts, x: Tensor) -> tuple[Rounded | None, Rounded | None]:
    """The tokens rounded for gate and up: once where both ask for the same."""
    first, second = gate.rounder, up.rounder
    codes = None if first is None else first(x)
    if first is not None and second is not None and first.key == second.key:
        return codes, codes
    return codes, None if second is None else second(x)


def _picked(x: Rounded, tokens: Tensor) -> Rounded:
    return replace(x, codes=x.codes[tokens], scales=x.scales[tokens])


def _visits(ids: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each expert that has tokens, with these and the slots in which they name it."""
    order = torch.argsort(ids.flatten(), stable=True)
    experts, counts = torch.unique_consecutive(ids.flatten()[order], return_counts=True)
    begin = 0
    for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
        places = order[begin : begin + count]
        yield expert, places // ids.shape[-1], places % ids.shape[-1]
        begin += count
