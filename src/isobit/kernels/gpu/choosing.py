"""Routing in few launches: logits, and on the way the choice, pairs put into tiles, and rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from isobit.kernels.gpu import choosing_tiles as tiles
from isobit.kernels.gpu.choosing_tiles import ChoiceShape, LogitsShape, Rounds
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.routing_tiles import RouterShape
from isobit.kernels.gpu.starter import Starter
from isobit.kernels.grouped import Routes, Routing
from isobit.kernels.rounded import Rounded


@dataclass(frozen=True, eq=False)
class Placed(Routes):
    """Routes with what was made on the way.

    Attributes:
        tiles: by the width of tiles: ``order`` and ``experts`` (``triton/experts.py``).
        rounded: what the experts' linears take in place of the input, or None.
    """

    tiles: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    rounded: Rounded | None = None


class Chooser(Starter):
    """The kernels of ``triton/routers.py`` and ``triton/choosing.py`` on one machine."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._narrow: WeakKeyDictionary[Routing, Tensor] = WeakKeyDictionary()

    def choose(
        self, shape: RouterShape, routing: Routing, x: Tensor, width: int, room: int, rounding: Rounding | None
    ) -> Placed:
        """The experts of each token of ``x [T, K]``, T > 0, and their weights.

        Args:
            shape: what the router is.
            routing: likewise, with its numbers.
            x: contiguous.
            width: of the tiles into which pairs are put; 0 for none.
            room: tiles that any choice needs at most.
            rounding: of the input, for the experts; None if they take it as it is.
        """
        tokens = len(x)
        rounded, arguments = self._rounds(x, rounding)
        logits = self._logits(shape, routing, x, rounding, arguments)
        ids = torch.empty((tokens, shape.active), dtype=torch.int32, device=x.device)
        weights = torch.empty((tokens, shape.active), dtype=torch.float32, device=x.device)
        at_once = tiles.tokens_at_once(tokens, shape.experts)
        blocks = -(-tokens // at_once)
        choice = ChoiceShape(shape, len(logits), at_once, width, blocks == 1)
        later, nothing = width > 0 and blocks > 1, self.unused(torch.float32, x.device)
        places = {
            "order": self._room(room * width, x.device), "experts": self._room(room if width else 0, x.device),
            "ranks": self._room(ids.numel() if later else 0, x.device),
            "counts": self._room(blocks * shape.experts if later else 0, x.device),
        }  # fmt: skip
        self.kernel("choosing:choose_pairs", tiles.choose_pairs, choice)(
            (blocks,), logits=logits, correction=nothing if routing.correction is None else routing.correction,
            ids=ids, weights=weights, least_sum=routing.least_sum, scale=routing.scale,
            tolerance=routing.tolerance, tokens=tokens, tiles=room, **places,
        )  # fmt: skip
        if later:
            self.kernel("choosing:place_ranked", tiles.place_ranked, choice)(
                (blocks,), ids=ids, bases=torch.empty_like(places["counts"]), tokens=tokens, tiles=room, **places
            )
        return Placed(ids, weights, {width: (places["order"], places["experts"])} if width else {}, rounded)

    def _room(self, count: int, device: torch.device) -> Tensor:
        """int32 ``[count]``; for none something that is not read."""
        return torch.empty(count, dtype=torch.int32, device=device) if count else self.unused(torch.int32, device)

    def _rounds(self, x: Tensor, rounding: Rounding | None) -> tuple[Rounded | None, dict[str, Any]]:
        if rounding is not None:
            return rounding.room(x)
        unused = self.unused(torch.float32, x.device)
        return None, {
            "codes": self.unused(torch.uint8, x.device), "scales": unused, "static_scale": unused, "qmax": 0.0
        }  # fmt: skip

    def _logits(
        self, shape: RouterShape, routing: Routing, x: Tensor, rounding: Rounding | None, arguments: dict[str, Any]
    ) -> Tensor:
        """float32 ``[splits, T, experts]``, which are to be added; and the rounding of ``x``."""
        tokens, k = x.shape
        weight = self._weight(routing, x.dtype)
        rounds = Rounds()
        if rounding is not None:
            rounds = Rounds(rounding.spec.element, rounding.pointer, rounding.static_scale is not None, k)
        tile = tiles.tile_of(tokens)
        asked = LogitsShape(shape, k, weight.dtype == x.dtype, rounds, tile)
        logits = torch.empty((1 if tile is None else tile[2], tokens, shape.experts), device=x.device)
        bias = self.unused(torch.float32, x.device) if routing.bias is None else routing.bias
        arguments = {"x": x, "weight": weight, "bias": bias, "logits": logits, "K": k, **arguments}
        if tile is None:
            kernel = self.kernel("routers:router_token", tiles.router_token, asked)
            programs = -(-shape.experts // int(kernel.config.constexprs["BLOCK_N"] or 1))
            kernel((programs + (rounding is not None), tokens), **arguments)
            return logits
        kernel = self.kernel("routers:router_tiles", tiles.router_tiles, asked)
        m, n = (int(kernel.config.constexprs[name] or 1) for name in ("BLOCK_M", "BLOCK_N"))
        programs = -(-tokens // m) * -(-shape.experts // n) * tile[2]
        kernel((programs + (tokens if rounding is not None else 0),), M=tokens, **arguments)
        return logits

    def _weight(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        """The router's weight in the dtype of the activations, if that holds it: checkpoints have them in 16 bits."""
        held = self._narrow.get(routing)
        if held is None or held.dtype not in (dtype, torch.float32):
            if routing.weight.is_cuda and torch.cuda.is_current_stream_capturing():
                return routing.weight  # nothing can be looked at; the step before this one has done so
            narrow = routing.weight.to(dtype)
            held = narrow if torch.equal(narrow.float(), routing.weight) else routing.weight
            self._narrow[routing] = held
        return held
