"""What is to be run, and the answers: a lowering that says how, or a refusal that says why not and what instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isobit.formats.schemes import ActSpec, WeightSpec

Action = Literal["native", "legalized", "relaxed", "refused"]
Kind = Literal["linear", "attention", "embedding"]

# From the best answer to the worst. A model is as good as its worst operation.
ACTIONS: tuple[Action, ...] = ("native", "legalized", "relaxed", "refused")


@dataclass(frozen=True)
class Op:
    """One piece of work that a model does ``count`` times per token.

    Attributes:
        kind: ``linear``, ``attention`` or ``embedding``.
        name: the module, without the layer's number.
        n, k: of a linear ``[n, k]``, of an embedding rows and width; of attention heads and the width of a head.
        weights: how the weight is stored; None when it is not quantized.
        activations: how inputs are rounded; None when they are not.
        dtype: what activations that are not rounded are in: a torch dtype.
        stored: dtype of a weight that is not quantized; empty for the one of the activations.
        kv: attention: format of the cached keys and values, an element format or a torch dtype.
        kv_heads: attention: key-value heads.
        kept: attention: widths of both parts of what is cached of a token for each of them; () for ``(k, k)``.
        count: how often it is there.
        bias: whether a linear adds one.
        scale_dtype: what scales are stored in.
        given: whether the weight is quantized already, so that nothing is asked but whether kernels take it.
        experts, active: of a linear of a mixture, of how many experts it is one and how many a token goes to: ``count``
            is that of the experts of all layers; 0: it is of no mixture.
    """

    kind: Kind
    name: str
    n: int
    k: int
    weights: WeightSpec | None = None
    activations: ActSpec | None = None
    dtype: str = "bfloat16"
    stored: str = ""
    kv: str = ""
    kv_heads: int = 0
    kept: tuple[int, ...] = ()
    count: int = 1
    bias: bool = False
    scale_dtype: str = "bfloat16"
    given: bool = False
    experts: int = 0
    active: int = 0

    @property
    def calls(self) -> int:
        """How often it is launched for a token: the experts of a layer are launched together."""
        return self.count // self.experts if self.experts else self.count

    @property
    def share(self) -> float:
        """The part of its weights that a token is multiplied by."""
        return self.active / self.experts if self.experts else 1.0

    def read(self, tokens: int) -> float:
        """The part of its weights that so many tokens need, if each chooses its experts by itself and alike."""
        return 1.0 - (1.0 - self.share) ** tokens

    @property
    def a(self) -> str:
        """Format of the activations that are multiplied."""
        return self.activations.element if self.activations else self.dtype

    @property
    def w(self) -> str:
        """Format of the weights that are multiplied."""
        return self.weights.element if self.weights else self.stored or self.dtype

    @property
    def timed_as(self) -> tuple[str, bool, str, int]:
        """What a measured time is of: format of the weights, whether activations are rounded, what shares a scale of
        the weights (empty where they have none), and weights that share one, of a group (else 0)."""
        scales = (self.weights.granularity, self.weights.group or 0) if self.weights is not None else ("", 0)
        return (self.w, self.activations is not None, *scales)

    @property
    def scales(self) -> str:
        """Format of the scales of groups of both weights and activations, if it is one of few bits; else empty."""
        both = self.weights, self.activations
        found = {spec.scale.element for spec in both if spec is not None and spec.scale is not None}
        whole = all(spec is not None and spec.scale is not None for spec in both)
        return found.pop() if whole and len(found) == 1 else ""

    @property
    def rounds(self) -> tuple[WeightSpec | None, ActSpec | None]:
        """The rounding points: what every lowering that is not relaxed has in common."""
        return self.weights, self.activations


@dataclass(frozen=True)
class Lowering:
    """How an op runs on a target.

    Attributes:
        action: ``native``, ``legalized`` or ``relaxed``.
        rule: the rule that found it.
        how: in one line, for many tokens at once.
        decode: the same for a token at a time, which memory bounds.
        compute: format of the products.
        matrix: whether the matrix units do them.
        instruction: the mnemonic family in machine code; empty outside the matrix units.
        kernels: names of the kernels, a token at a time first.
        sizes: (tokens from which on, name of the kernel) on GPUs, as binding chooses it.
        reason: why not a better action; empty for native.
        notes: what else changes and a user should know.
        rounds: the rounding points that this lowering keeps.
        workspace: bytes that a call with very many tokens (``kernels.gpu.tiles.LARGE``) takes for a widened weight.
        narrowed: whether such a call takes activations in another dtype, too.
        native_from: of what is native: tokens of a call from which on it is; fewer are widened in registers.
    """

    action: Action
    rule: str
    how: str
    decode: str
    compute: str
    matrix: bool
    instruction: str
    kernels: tuple[str, ...]
    reason: str
    notes: tuple[str, ...]
    rounds: tuple[WeightSpec | None, ActSpec | None]
    workspace: int = 0
    narrowed: bool = False
    sizes: tuple[tuple[int, str], ...] = ()
    native_from: int = 1


@dataclass(frozen=True)
class Refusal:
    """Why an op cannot run on a target.

    Attributes:
        reasons: every reason, one for each rule that was tried.
        instead: the nearest scheme that works there; empty if none does.
    """

    reasons: tuple[str, ...]
    instead: str = ""

    @property
    def action(self) -> Action:
        """``refused``."""
        return "refused"


Decision = Lowering | Refusal


def worst(decisions: list[Decision]) -> Action:
    """The worst action of several decisions."""
    return max((d.action for d in decisions), key=ACTIONS.index, default="native")
