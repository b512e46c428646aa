"""Mixtures of experts in Hugging Face's ``config.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from isobit.models.config import Experts, LayerSpec
from isobit.models.fields import Fields, shown

MOST_EXPERTS = 1 << 16
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE_KEYS = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token")


def read_counts(fields: Fields, default_experts: int, default_active: int, active: str = "") -> tuple[int, int]:
    """How many experts there are, and how many a token goes to.

    Args:
        fields: the file.
        default_experts, default_active: what absent keys mean.
        active: the key of the second, where a family has one of its own.
    """
    key = _only_one(fields, EXPERT_KEYS)
    count = fields.integer(key, default_experts, high=MOST_EXPERTS)
    active = active or _only_one(fields, ACTIVE_KEYS)
    chosen = fields.integer(active, default_active, high=MOST_EXPERTS)
    if fields.sound and chosen > count:
        fields.problem(active, f"there are {count} experts ({key})")
        return 1, 1
    return count, chosen


def _only_one(fields: Fields, keys: tuple[str, ...]) -> str:
    """The one of several names for the same number that the file has; all that it has must say the same."""
    there = [key for key in keys if fields.raw(key) is not None]
    for other in there[1:]:
        if fields.raw(other) != fields.raw(there[0]):
            fields.problem(other, f"{there[0]} says {shown(fields.raw(there[0]))}, and means the same")
    return there[0] if there else keys[0]


def with_experts(
    experts: Experts, sparse: Callable[[int], bool] = lambda number: True, name: str = "mlp"
) -> Callable[[int, LayerSpec], LayerSpec]:
    """For ``Style.vary``: the mixture in some layers, the dense MLP that all families have in the others.

    Args:
        experts: the mixture.
        sparse: whether a layer, by its number, has it.
        name: what the MLP of every layer is called in checkpoints.
    """

    def vary(number: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, mlp=experts if sparse(number) else layer.mlp, mlp_name=name)

    return vary


def qwen_layers(fields: Fields) -> Callable[[int], bool]:
    """Which layers of a Qwen have experts: every so many, without those that are listed as dense."""
    step, listed = fields.integer("decoder_sparse_step", 1), fields.raw("mlp_only_layers")
    if listed is not None and not (isinstance(listed, list) and all(type(layer) is int for layer in listed)):
        fields.problem("mlp_only_layers", "expected a list of whole numbers")
        return lambda layer: True
    dense = frozenset(listed or ())
    return lambda layer: layer not in dense and (layer + 1) % step == 0
