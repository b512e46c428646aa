"""What stands behind attention in a layer, as descriptions: a gated or plain MLP, or experts and their router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "gelu", "relu2"]
Scores = Literal["softmax", "sigmoid", "softmax-behind", "sparsemixer"]


@dataclass(frozen=True)
class GatedMlp:
    """``down(activation(gate(x)) * up(x))``.

    Attributes:
        size: outputs of gate and up.
        activation: ``silu``; ``gelu``, or ``gelu_tanh``: GELU by its tanh approximation; ``relu2``: a ReLU's square.
        bias: whether the three have a bias.
        limit: gpt-oss's gate: gate below the limit, up within it, ``(up + 1) * gate * sigmoid(1.702 * gate)``; None:
            the plain one.
        joined: whether checkpoints have gate and up as one matrix, the gate above.
        names: what they then call that matrix, and down.
    """

    size: int
    activation: Activation = "silu"
    bias: bool = False
    limit: float | None = None
    joined: bool = False
    names: tuple[str, str] = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class PlainMlp:
    """``down(activation(up(x)))``.

    Attributes:
        size: outputs of up.
        activation: as of :class:`GatedMlp`.
        bias: whether both have a bias.
        names: what checkpoints call both.
    """

    size: int
    activation: Activation = "gelu_tanh"
    bias: bool = False
    names: tuple[str, str] = ("up_proj", "down_proj")


@dataclass(frozen=True)
class Router:
    """Which experts a token goes to, in float32. Of equal scores the expert with the lower number is chosen.

    Attributes:
        experts, active: how many there are, and how many a token goes to.
        scores: ``softmax`` or ``sigmoid`` of the router's logits; ``softmax-behind``: a softmax over those chosen;
            ``sparsemixer`` (arXiv 2409.12136): the logits, and an expert weighs what a softmax gives it over those that
            are not chosen in front of it, without any whose logit is too far below its own.
        bias: whether the router is a linear with a bias.
        correction: whether each expert has a number that is added to its score for the choice, not for its weight.
        groups, active_groups: experts are in so many groups, of which the best so many take part.
        group_score: what makes a group good: its best expert (``max``), or its two best together (``two``).
        renormalize: whether the weights of a token's experts are divided by their sum.
        scale: what the weights are multiplied by.
        least_sum: what they are divided by at least.
        on_input: whether the weight multiplies what goes into an expert, not what comes out (Llama 4).
        tolerance: of sparsemixer: how far below is too far, as a share of the larger of the own logit and the size of
            the other.
    """

    experts: int
    active: int
    scores: Scores = "softmax"
    bias: bool = False
    correction: bool = False
    groups: int = 1
    active_groups: int = 1
    group_score: Literal["max", "two"] = "max"
    renormalize: bool = True
    scale: float = 1.0
    least_sum: float = 1e-20
    on_input: bool = False
    tolerance: float = 0.0


@dataclass(frozen=True)
class StackedNames:
    """Tensors of all experts of a layer: ``[E, 2I, K]`` of gate and up, ``[E, K, I]`` of down.

    Attributes:
        gate_up, down: their names within the MLP; of biases with ``_bias`` behind.
        transposed: whether they lie as ``[E, K, 2I]`` and ``[E, I, K]``.
        either: whether they may lie like that, where their shapes say so (Qwen3-VL: as published, and as transformers 5
            saves it).
        interleaved: whether gate and up take turns; otherwise all of gate comes first.
    """

    gate_up: str = "experts.gate_up_proj"
    down: str = "experts.down_proj"
    transposed: bool = False
    either: bool = False
    interleaved: bool = False


@dataclass(frozen=True)
class ExpertNames:
    """Under which names checkpoints have the modules of a mixture, within the MLP of a layer.

    Attributes:
        router: a linear.
        correction: a vector of numbers.
        correction_rows: whether it is stored as the one row of a matrix.
        experts: what stands in front of an expert's number.
        gate, up, down: linears of an expert.
        shared, shared_gate: the expert of all tokens, and its gate.
        beside: whether the expert of all tokens stands in the layer, not within its MLP.
        stacked: tensors of all experts together, as some checkpoints have them.
        one_by_one: whether transformers loads experts that have tensors of their own.
        also: beginnings of names within a layer as some checkpoints have them, and what they stand for here.
    """

    router: str = "gate"
    correction: str = "gate.e_score_correction_bias"
    correction_rows: bool = False
    experts: str = "experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str = "shared_experts"
    shared_gate: str = "shared_expert_gate"
    beside: bool = False
    stacked: StackedNames = StackedNames()  # noqa: RUF009 - frozen
    one_by_one: bool = True
    also: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Experts:
    """A mixture of experts.

    Attributes:
        router: which experts a token goes to.
        expert: what each is.
        shared: one more that all tokens go to; None: there is none.
        shared_gate: whether the shared one's result is multiplied by the sigmoid of a linear of the token.
        names: of its modules.
    """

    router: Router
    expert: GatedMlp
    shared: GatedMlp | None = None
    shared_gate: bool = False
    names: ExpertNames = ExpertNames()  # noqa: RUF009 - frozen


Mlp = GatedMlp | PlainMlp | Experts
