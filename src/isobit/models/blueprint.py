"""The modules of a model: the one place that says what a layer is made of, and under which names checkpoints have it.

Expected tensors, the loader, the planner's workload, what engines fuse and how a layer is split over several cards are
read from here. From the configuration alone, without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from isobit.formats.rules import ModuleKind
from isobit.models.config import Attention, LatentAttention, LayerSpec, ModelConfig, Norms, SelfAttention
from isobit.models.feed_forward import Experts, GatedMlp

Shapes = dict[str, tuple[int, ...]]

TABLE, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"


@dataclass(frozen=True)
class Module:
    """One module that has a weight.

    Attributes:
        name: in a checkpoint; within its layer, or in front of a model's other modules, the whole name.
        role: what the layer calls it: ``q``, ``gate``, ``before_mlp``, ...; of other modules their name.
        kind: what it is; a ``vector`` is a tensor that has the name of the module itself.
        shape: of its weight: ``(outputs, inputs)`` of a linear, ``(width,)`` of a norm.
        bias: whether it has one, of as many numbers as it has outputs.
        split: how several cards share it: by ``rows`` (outputs), by ``columns`` (inputs, with a sum behind it);
            None: each has all of it.
        fused: modules of one layer with the same word read the same input, and engines make one matrix of them.
        parts: of a matrix that a checkpoint stores for several linears, their roles and rows, one below the other.
        expert: of which expert it is a part, by number; None: of none.
    """

    name: str
    role: str
    kind: ModuleKind
    shape: tuple[int, ...]
    bias: bool = False
    split: Literal["rows", "columns"] | None = None
    fused: str | None = None
    parts: tuple[tuple[str, int], ...] = ()
    expert: int | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """What the layer calls its rows; its own role where they are of one linear."""
        return tuple(role for role, _ in self.parts) or (self.role,)

    @property
    def tensor(self) -> str:
        """The name of its weight."""
        return self.name if self.kind == "vector" else f"{self.name}.weight"


def layer_modules(layer: LayerSpec, hidden: int) -> tuple[Module, ...]:
    """The modules of one layer in the order of computation, by their names within it."""
    norms = layer.norms
    parts = [
        _norm("before_attention", norms.before_attention, hidden), *_attention(layer.attention, hidden),
        _norm("after_attention", norms.after_attention, hidden), _norm("before_mlp", norms.before_mlp, hidden),
        *_mlp(layer, hidden), _norm("after_mlp", norms.after_mlp, hidden),
    ]  # fmt: skip
    return tuple(part if part.kind != "norm" else _biased(part, norms) for part in parts if part is not None)


def _norm(role: str, name: str | None, width: int) -> Module | None:
    return None if name is None else Module(name, role, "norm", (width,))


def _biased(module: Module, norms: Norms) -> Module:
    """A norm of the layer itself has a bias where they have one."""
    return replace(module, bias=norms.bias) if module.role in norms.names else module


def _attention(part: Attention, hidden: int) -> list[Module]:
    return _latent(part, hidden) if isinstance(part, LatentAttention) else _heads(part, hidden)


def _latent(part: LatentAttention, hidden: int) -> list[Module]:
    """What makes queries and the latent reads one input, and only what makes queries of a latent is split by heads."""
    queries, shared = part.heads * part.query, part.rank + part.rotated
    if part.query_rank is None:
        found = [Module("self_attn.q_proj", "q", "linear", (queries, hidden), split="rows")]
    else:
        found = [Module("self_attn.q_a_proj", "q_a", "linear", (part.query_rank, hidden), part.bias, fused="qkv_a")]
    word = None if part.query_rank is None else "qkv_a"
    found.append(Module("self_attn.kv_a_proj_with_mqa", "kv_a", "linear", (shared, hidden), part.bias, fused=word))
    if part.query_rank is not None:
        found += [
            Module("self_attn.q_a_layernorm", "q_a_norm", "norm", (part.query_rank,)),
            Module("self_attn.q_b_proj", "q_b", "linear", (queries, part.query_rank), split="rows"),
        ]
    made, mixed = part.heads * (part.plain + part.value), part.heads * part.value
    return [
        *found,
        Module("self_attn.kv_a_layernorm", "kv_a_norm", "norm", (part.rank,)),
        Module("self_attn.kv_b_proj", "kv_b", "absorbed", (made, part.rank), split="rows"),
        Module("self_attn.o_proj", "o", "linear", (hidden, mixed), part.bias, "columns"),
    ]


def _heads(part: SelfAttention, hidden: int) -> list[Module]:
    queries, keys = part.heads * part.dim, part.kv_heads * part.dim
    sizes = (("q", queries), ("k", keys), ("v", keys))
    if part.joined:
        found = [_joined("self_attn.qkv_proj", "qkv", sizes, hidden, part.bias)]
    else:
        found = [
            Module(f"self_attn.{role}_proj", role, "linear", (width, hidden), part.bias, "rows", "qkv")
            for role, width in sizes
        ]
    if part.qk_norm not in ("none", "l2"):
        found += [
            Module(f"self_attn.{name}", role, "norm", _over(part, heads))
            for name, role, heads in zip(part.qk_names, ("q_norm", "k_norm"), (part.heads, part.kv_heads), strict=True)
        ]
    if part.sinks:
        found.append(Module("self_attn.sinks", "sinks", "vector", (part.heads,)))
    return [*found, Module(f"self_attn.{part.o_name}", "o", "linear", (hidden, queries), part.o_bias, "columns")]


def _over(part: SelfAttention, heads: int) -> tuple[int, ...]:
    """The shape of the weights of a norm of queries or keys."""
    return {"width": (heads * part.dim,), "heads": (heads, part.dim)}.get(part.qk_norm, (part.dim,))


def _joined(name: str, role: str, sizes: tuple[tuple[str, int], ...], hidden: int, bias: bool) -> Module:
    """One matrix that is stored for several linears."""
    return Module(name, role, "linear", (sum(rows for _, rows in sizes), hidden), bias, "rows", parts=sizes)


def _mlp(layer: LayerSpec, hidden: int) -> list[Module]:
    part, prefix = layer.mlp, f"{layer.mlp_name}."
    if isinstance(part, Experts):
        return _experts(part, hidden, prefix)
    if isinstance(part, GatedMlp):
        return _gated(part, hidden, prefix)
    up, down = part.names
    return [
        Module(prefix + up, "up", "linear", (part.size, hidden), part.bias, "rows"),
        Module(prefix + down, "down", "linear", (hidden, part.size), part.bias, "columns"),
    ]


GATED = "gate_proj", "up_proj", "down_proj"


def _gated(
    part: GatedMlp, hidden: int, prefix: str, names: tuple[str, str, str] = GATED, role: str = "",
    expert: int | None = None,
) -> list[Module]:  # fmt: skip
    """A gated MLP; ``role`` stands in front of the roles of one that is beside others."""
    gate, up, down = (prefix + name for name in (*names[:2], part.names[1] if part.joined else names[2]))
    last = Module(down, f"{role}down", "linear", (hidden, part.size), part.bias, "columns", expert=expert)
    if part.joined:
        sizes = ((f"{role}gate", part.size), (f"{role}up", part.size))
        return [_joined(prefix + part.names[0], f"{role}gate_up", sizes, hidden, part.bias), last]
    return [
        Module(gate, f"{role}gate", "linear", (part.size, hidden), part.bias, "rows", "gate_up", expert=expert),
        Module(up, f"{role}up", "linear", (part.size, hidden), part.bias, "rows", "gate_up", expert=expert),
        last,
    ]


def _experts(part: Experts, hidden: int, prefix: str) -> list[Module]:
    """A mixture: its router first, then what all tokens go to, then the experts, one after the other."""
    names, router = part.names, part.router
    found = [Module(prefix + names.router, "router", "router", (router.experts, hidden), router.bias)]
    if router.correction:
        shape = (1, router.experts) if names.correction_rows else (router.experts,)
        found.append(Module(prefix + names.correction, "correction", "vector", shape))
    if part.shared is not None:
        inside = f"{'' if names.beside else prefix}{names.shared}."
        found += _gated(part.shared, hidden, inside, role="shared_")
    if part.shared_gate:
        found.append(Module(prefix + names.shared_gate, "weight_of_shared", "router", (1, hidden)))
    linears = names.gate, names.up, names.down
    for expert in range(router.experts):
        found += _gated(part.expert, hidden, f"{prefix}{names.experts}.{expert}.", linears, expert=expert)
    return found


def by_input(found: tuple[Module, ...]) -> tuple[tuple[Module, ...], ...]:
    """Modules of one layer, those together that engines make one matrix of."""
    groups: list[list[Module]] = []
    for module in found:
        if groups and module.fused is not None and groups[-1][-1].fused == module.fused:
            groups[-1].append(module)
        else:
            groups.append([module])
    return tuple(tuple(group) for group in groups)


def is_behind(name: str, config: ModelConfig) -> bool:
    """Whether a tensor is of layers behind the last, which guess further tokens: by number, or by name (ERNIE)."""
    behind = range(config.num_layers, config.num_layers + config.predicted_layers)
    return bool(behind) and name.startswith(("model.mtp_", *(layer_prefix(number) for number in behind)))


def layer_prefix(layer: int) -> str:
    """What names of a layer's modules begin with in a checkpoint."""
    return f"model.layers.{layer}."


class _Same:
    """A configuration as a key: itself and no other that is equal, which would take as long to find out."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def __hash__(self) -> int:
        return id(self.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.config is self.config


def modules(config: ModelConfig) -> tuple[Module, ...]:
    """Every module of a model by its whole name, in the order of computation; a tied output projection is none."""
    return _modules(_Same(config))


@lru_cache(maxsize=2)  # a plan asks seven times, and mixtures have tens of thousands
def _modules(same: _Same) -> tuple[Module, ...]:
    config = same.config
    hidden = config.hidden_size
    table = Module(TABLE, TABLE, "embedding", (config.vocab_size, hidden), split="rows")
    head = Module(HEAD, HEAD, "lm_head", (config.vocab_size, hidden), config.head_bias, split="rows")
    inner = [
        replace(part, name=layer_prefix(number) + part.name)
        for number, layer in enumerate(config.layers)
        for part in layer_modules(layer, hidden)
    ]
    last = [] if config.tie_word_embeddings else [head]
    return (table, *inner, Module(config.norm_name, NORM, "norm", (hidden,), config.norms.bias), *last)


def expected_tensors(config: ModelConfig) -> Shapes:
    """Every tensor of the unquantized model, by its name in a checkpoint, with its shape."""
    shapes: Shapes = {}
    for module in modules(config):
        shapes[module.tensor] = module.shape
        if module.bias:
            shapes[f"{module.name}.bias"] = module.shape[:1]
    return shapes


def is_matrix(tensor: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the unquantized model may be stored quantized; a norm with weights of each head is none."""
    return len(shape) == 2 and tensor.endswith(".weight") and not tensor.endswith("norm.weight")


def classifier(config: ModelConfig) -> Callable[[str], ModuleKind]:
    """A function from the name of a tensor to what its module is; ``other`` for tensors of no module of the model."""
    kinds = {module.name: module.kind for module in modules(config)}
    kinds.setdefault(HEAD, "lm_head")  # tied, it has no tensors in the blueprint, and yet is one
    return lambda tensor: kinds.get(tensor) or kinds.get(tensor.rpartition(".")[0], "other")


def fused(config: ModelConfig) -> tuple[tuple[str, ...], ...]:
    """Modules that engines make one matrix of, by their names in a checkpoint."""
    groups: dict[tuple[str, str], list[str]] = {}
    for module in modules(config):
        if module.fused is not None:
            groups.setdefault((module.name.rpartition(".")[0], module.fused), []).append(module.name)
    return tuple(tuple(names) for names in groups.values())
