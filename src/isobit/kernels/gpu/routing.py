"""Where tokens go, and what comes back of their experts, on a GPU (``triton/routing.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.gpu import choosing_tiles
from isobit.kernels.gpu import routing_tiles as tiles
from isobit.kernels.gpu.choosing import Chooser, Placed
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.routing_tiles import PlacesShape, RouterShape, SumShape
from isobit.kernels.gpu.starter import name_of
from isobit.kernels.grouped import Routing


class GpuRouter(Chooser):
    """The kernels about experts that are no linears, on one machine.

    ``alike``: logits are those of tiles, and tokens choose one by one, however many there are.
    """

    def route(self, routing: Routing, x: Tensor, width: int = 0, rounding: Rounding | None = None) -> Placed:
        """The experts of each token of ``x [T, K]`` and their weights, by the law of ``reference_experts.route``.

        Args:
            routing: how they are chosen.
            x: the tokens.
            width: of the tiles into which pairs will be put, which may be done on the way; 0 for none.
            rounding: what rounds the input of the experts, which may be done on the way too.

        Raises:
            FormatError: the router is one of other widths.
        """
        tokens, k = x.shape
        experts, active = routing.experts, routing.active
        if routing.weight.shape != (experts, k) or not 0 < active <= experts or experts % routing.groups:
            raise FormatError(f"a router of {list(routing.weight.shape)} chooses {active} experts for tokens of {k}")
        shape = RouterShape(
            name_of(x.dtype), experts, active, routing.scores, routing.groups, routing.active_groups,
            routing.group_score == "two", routing.renormalize, routing.bias is not None, routing.correction is not None,
        )  # fmt: skip
        if tokens and not self.alike:
            whole = rounding is not None and rounding.spec.group is None and choosing_tiles.rounds(k)
            room = most_tiles(tokens * active, experts, width) if width else 0
            return self.choose(shape, routing, x.contiguous(), width, room, rounding if whole else None)
        logits = torch.empty((tokens, experts), dtype=torch.float32, device=x.device)
        ids = torch.empty((tokens, active), dtype=torch.int32, device=x.device)
        weights = torch.empty((tokens, active), dtype=torch.float32, device=x.device)
        if tokens:
            self._logits_alike(shape, routing, x.contiguous(), logits)
            unused = self.unused(torch.float32, x.device)
            self.kernel("routing:choose_experts", tiles.choose_experts, shape)(
                (tokens,), logits=logits, correction=unused if routing.correction is None else routing.correction,
                ids=ids, weights=weights, least_sum=routing.least_sum, scale=routing.scale,
                tolerance=routing.tolerance,
            )  # fmt: skip
        return Placed(ids, weights)

    def _logits_alike(self, shape: RouterShape, routing: Routing, x: Tensor, logits: Tensor) -> None:
        bias = self.unused(torch.float32, x.device) if routing.bias is None else routing.bias
        arguments = {"x": x, "weight": routing.weight, "bias": bias, "logits": logits, "K": x.shape[1]}
        kernel = self.kernel("routing:router_many", tiles.router_many, shape)
        n, m = (int(kernel.config.constexprs[name] or 1) for name in ("BLOCK_N", "BLOCK_M"))
        kernel((-(-len(x) // m), -(-shape.experts // n)), M=len(x), **arguments)

    def place(self, ids: Tensor, experts: int, tile: int) -> tuple[Tensor, Tensor]:
        """Pairs in tiles of one expert each: ``order [tiles * tile]`` and ``experts [tiles]`` (``triton/experts.py``).

        Args:
            ids: int32 ``[pairs]``: the expert of each, at least one.
            experts: how many there are.
            tile: pairs of a tile.
        """
        pairs, room = len(ids), most_tiles(len(ids), experts, tile)
        counts = torch.empty(experts, dtype=torch.int32, device=ids.device)
        order = torch.empty(room * tile, dtype=torch.int32, device=ids.device)
        of_tile = torch.empty(room, dtype=torch.int32, device=ids.device)
        shape = PlacesShape(experts, tile)
        counting = self.kernel("routing:count_pairs", tiles.count_pairs, PlacesShape(experts, 0))
        counting((experts,), ids=ids, counts=counts, pairs=pairs)
        self.kernel("routing:place_pairs", tiles.place_pairs, shape)(
            (experts,), ids=ids, counts=counts, order=order, experts=of_tile, pairs=pairs, tiles=room
        )
        return order, of_tile

    def add(
        self, results: Tensor, weights: Tensor | None, dtype: torch.dtype, residual: Tensor | None = None
    ) -> Tensor:
        """``[T, active, K]`` in float32, weighted by ``[T, active]`` if that is given, added: ``[T, K]``.

        Args:
            results, weights: what experts give, and by how much it counts.
            dtype: of what comes out.
            residual: ``[T, K]`` of that dtype, to which the sum is added as a value of it.
        """
        tokens, active, k = results.shape
        y = torch.empty((tokens, k), dtype=dtype, device=results.device)
        shape = SumShape(name_of(dtype), active, weights is not None, residual is not None)
        given = self.unused(torch.float32, results.device) if weights is None else weights
        more = y if residual is None else residual.contiguous()
        if tokens:
            self.kernel("routing:add_experts", tiles.add_experts, shape)(
                (tokens, -(-k // tiles.ADDED_AT_ONCE)), results=results, weights=given, residual=more, y=y, K=k
            )
        return y

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        """``x [T, K]`` once for each expert, times its weight: ``[T * active, K]`` in the dtype of ``x``."""
        (tokens, k), active = x.shape, weights.shape[1]
        y = torch.empty((tokens * active, k), dtype=x.dtype, device=x.device)
        if tokens:
            self.kernel("routing:weigh_inputs", tiles.weigh_inputs, SumShape(name_of(x.dtype), active))(
                (tokens * active, -(-k // tiles.VALUES_AT_ONCE)), x=x.contiguous(), weights=weights, y=y, K=k
            )
        return y

    def take(self, x: Tensor, order: Tensor, pairs: int) -> Tensor:
        """The inputs of pairs as ``order`` has them, ``[len(order), K]``; of no pair anything.

        Args:
            x: ``[pairs / share, K]`` of any dtype, rows of whole 32-bit words.
            order: of ``place``.
        """
        words = x.contiguous().view(torch.int32)
        y = torch.empty((len(order), words.shape[1]), dtype=torch.int32, device=x.device)
        grid = len(order) // tiles.PLACES_AT_ONCE, -(-words.shape[1] // tiles.WORDS_AT_ONCE)
        kernel = self.kernel("take:take_rows", tiles.take_rows, pairs // len(x))
        kernel(grid, x=words, order=order, y=y, PAIRS=pairs, K=words.shape[1])
        return y.view(x.dtype)

    def gate_by(self, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        """``y [T, N]`` times the sigmoid of ``x [T, K]`` by ``weight``, float32 ``[K]``."""
        x, y = x.contiguous(), y.contiguous()
        out = torch.empty_like(y)
        if len(x):
            self.kernel("routing:gate_by", tiles.gate_by, name_of(x.dtype))(
                (len(x),), x=x, weight=weight, y=y, out=out, K=x.shape[1], N=y.shape[1]
            )
        return out


def most_tiles(pairs: int, experts: int, tile: int) -> int:
    """Tiles that so many pairs may need, whichever experts they go to."""
    most = min(pairs, experts)  # that have any
    return most + (pairs - most) // tile
