"""Mixtures of experts on the CPU kernels (cpp/experts.cpp): weights are used where they are stored.

A token gives the bits that it gives alone, whatever is computed with it, where its linears do (docs/numerics.md,
section 6).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.cpu import structs
from isobit.kernels.cpu.library import check, library
from isobit.kernels.grouped import Grouped, Listener, Mixture, Routes, Routing

_SCORES = {"softmax": 0, "sigmoid": 1, "softmax-behind": 2, "sparsemixer": 3}  # enum isobit_scores of isobit_cpu.h

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class CpuRouter:
    """How the experts of tokens are chosen, in float32: a function ``[T, K]`` to their routes.

    Attributes:
        struct: isobit_router.

    Raises:
        FormatError: a tensor has another shape, dtype or place.
    """

    def __init__(self, routing: Routing) -> None:
        experts = routing.experts
        check_on_cpu("weight of a router", routing.weight, (experts, routing.weight.shape[-1]))
        check_on_cpu("bias of a router", routing.bias, (experts,))
        check_on_cpu("correction of a router", routing.correction, (experts,))
        self._linear = cpu.bind(routing.weight, None, None, routing.bias, alike=True)
        self._active, self._kept = routing.active, routing.correction
        self.struct = structs.Router(
            self._linear.address, structs.pointer(routing.correction), routing.active, routing.groups,
            routing.active_groups, routing.scale, routing.least_sum, _SCORES[routing.scores],
            int(routing.group_score == "two"), int(routing.renormalize), routing.tolerance,
        )  # fmt: skip
        self._call = library().isobit_cpu_route
        self._call.argtypes = (ctypes.POINTER(structs.Router), _POINTER, _SIZE, _SIZE, _POINTER, _POINTER)

    def __call__(self, x: Tensor) -> Routes:
        """The experts of each token and their weights.

        Args:
            x: ``[T, K]``.
        """
        values, active = x.float().contiguous(), self._active
        tokens = values.shape[0]
        check_on_cpu("input of a router", values, (tokens, self._linear.k))
        ids, weights = torch.empty(tokens, active, dtype=torch.int32), torch.empty(tokens, active)
        if tokens:
            pointers = ids.data_ptr(), weights.data_ptr()
            check(self._call(ctypes.byref(self.struct), values.data_ptr(), tokens, self._linear.k, *pointers))
        return Routes(ids, weights)


class CpuMixture:
    """The experts of a layer; a :class:`isobit.kernels.grouped.BoundMixture`.

    Attributes:
        mixture: they.
        struct: isobit_experts.
    """

    def __init__(self, mixture: Mixture, alike: bool) -> None:
        self.mixture = mixture
        bound = [_first(part, alike) for part in mixture.parts]
        scales = [_scales(part) for part in mixture.parts]
        self._kept = bound, scales  # memory that the struct points to
        parts = (
            structs.Grouped(linear.struct, part.experts, part.stride, structs.pointer(scale))
            for linear, part, scale in zip(bound, mixture.parts, scales, strict=True)
        )
        gating = mixture.gating
        code = structs.activation_code(gating.activation)
        self.struct = structs.Experts(*parts, gating.limit or 0.0, code, int(mixture.on_input))
        self._call = library().isobit_cpu_experts
        self._call.argtypes = (
            ctypes.POINTER(structs.Experts), _POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER,
        )  # fmt: skip

    def __call__(self, x: Tensor, routes: Routes, listener: Listener | None = None) -> Tensor:
        """``[T, K]`` to the weighted sum of each token's experts; see BoundMixture.

        Raises:
            FormatError: a tensor has another shape, dtype or place.
            IsobitError: a token goes to an expert that is not there.
        """
        values, (tokens, active) = x.float().contiguous(), routes.ids.shape
        check_on_cpu("input of experts", values, (tokens, self.mixture.gate.columns))
        check_on_cpu("experts of tokens", routes.ids, (tokens, active), torch.int32)
        check_on_cpu("weights of experts", routes.weights, (tokens, active))
        y = torch.empty(tokens, self.mixture.down.rows)
        inner = torch.empty(tokens * active, self.mixture.down.columns) if listener is not None else None
        if tokens:
            given = values.data_ptr(), tokens, values.shape[1], routes.ids.data_ptr(), routes.weights.data_ptr()
            check(self._call(ctypes.byref(self.struct), *given, active, y.data_ptr(), structs.pointer(inner)))
        if listener is not None and inner is not None:
            listener(inner)
        return y.to(x.dtype)


def bind(mixture: Mixture, *, keep_values: bool = False, alike: bool = False) -> CpuMixture:
    """Binds the experts of a layer to the kernels; the registry's row says which formats they take.

    Args:
        mixture: they, on the CPU.
        keep_values: of no effect: weights are never kept decoded.
        alike: a token gives the same bits in any number of tokens, also where activations are not rounded.

    Raises:
        Unsupported: weights hold codes that the kernels do not decode, or are of a dtype that they do not know.
        FormatError: shapes, dtypes or devices do not fit together.
    """
    del keep_values
    return CpuMixture(mixture, alike)


def _first(part: Grouped, alike: bool) -> cpu.CpuLinear:
    """The linear of the first expert, whose struct the others' follow from; all codes have been looked at."""
    if part.spec is not None and part.spec.granularity == "tensor":
        raise FormatError("experts with one scale for all of them: each needs its own")
    scale = _shared_scale(part)
    whole = cpu.bind(part.weight, part.activations, scale, None, alike=alike)
    if part.bias is not None:
        check_on_cpu("bias of experts", part.bias, (part.experts, part.rows))
    return whole.first_rows(part.rows, part.bias)


def _shared_scale(part: Grouped) -> Tensor | None:
    """The static scale of the input, or that of the first expert."""
    return None if part.input_scale is None else part.input_scale[:1].float()


def _scales(part: Grouped) -> Tensor | None:
    """Static scales of inputs, where experts have different ones."""
    scale = part.input_scale
    return None if scale is None or len(scale) == 1 else scale.float().contiguous()
