"""Mixtures of experts in Hugging Face's ``config.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from isobit.models.config import LayerSpec
from isobit.models.feed_forward import Experts
from isobit.models.fields import Fields, shown
from isobit.models.hf import MOST_LAYERS

MOST_EXPERTS = 4096  # of a layer
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE_KEYS = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token")


def read_counts(fields: Fields, default_experts: int, default_active: int, *, listed: bool = False) -> tuple[int, int]:
    """How many experts there are, and how many a token goes to.

    Args:
        fields: the file.
        default_experts, default_active: what absent keys mean.
        listed: whether there may be a list instead, with the same number for each layer.
    """
    key, active = _only_one(fields, EXPERT_KEYS), _only_one(fields, ACTIVE_KEYS)
    count = _number(fields, key, default_experts, listed)
    chosen = _number(fields, active, default_active, listed)
    if fields.sound and chosen > count:
        fields.problem(active, f"there are {count} experts ({key})")
        return 1, 1
    return count, chosen


def _number(fields: Fields, key: str, default: int, listed: bool) -> int:
    found = fields.raw(key)
    if not listed or not isinstance(found, list):
        return fields.integer(key, default, high=MOST_EXPERTS)
    if not found or type(found[0]) is not int or any(one != found[0] for one in found) or found[0] < 1:
        fields.problem(key, "isobit runs the same number in all layers")
        return 1
    return min(found[0], MOST_EXPERTS)


def read_alike(fields: Fields, key: str, wanted: int) -> None:
    """Refuses another number than the one that transformers takes; a list has one for each layer."""
    found = fields.raw(key)
    numbers = found if isinstance(found, list) else [] if found is None else [found]
    if any(type(one) is not int or one != wanted for one in numbers):
        fields.problem(key, f"transformers takes {wanted} here, whatever this says, and so does isobit")


def read_groups(fields: Fields, experts: int, active: int) -> tuple[int, int]:
    """Groups of experts, and of how many of them a token's ``active`` experts are."""
    groups, chosen = fields.integer("n_group", 1), fields.integer("topk_group", 1)
    if fields.sound and experts % groups:
        fields.problem("n_group", f"does not divide the number of experts, {experts}")
    if fields.sound and chosen > groups:
        fields.problem("topk_group", f"there are {groups} groups")
    if fields.sound and active > chosen * (experts // groups):
        fields.problem("topk_group", f"{chosen} of {groups} groups have fewer experts than the {active} of a token")
    return (groups, chosen) if fields.sound else (1, 1)


def read_layers(fields: Fields, key: str) -> frozenset[int] | None:
    """A list of layers by number; None where there is none."""
    listed, layers = fields.raw(key), fields.integer("num_hidden_layers", high=MOST_LAYERS)
    if listed is None:
        return None
    if not (isinstance(listed, list) and all(type(layer) is int for layer in listed)):
        fields.problem(key, "expected a list of whole numbers")
        return None
    beyond = [layer for layer in listed if not 0 <= layer < layers]
    if fields.sound and beyond:
        fields.problem(key, f"there is no layer {shown(beyond[0])}: num_hidden_layers = {layers}")
    return frozenset(listed)


def read_first(fields: Fields, default: int, key: str = "first_k_dense_replace") -> int:
    """How many layers in front have no experts: at most all."""
    layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    first = fields.integer(key, default, low=0)
    if fields.sound and fields.raw(key) is not None and first > layers:
        fields.problem(key, f"there are only {layers} layers (num_hidden_layers)")
    return first


def read_sparse(fields: Fields, dense: int) -> tuple[bool, ...]:
    """Which layers have experts: those that ``mlp_layer_types`` says, or else all but so many in front.

    transformers writes both, whatever the other is, and goes by the first.

    Args:
        fields: the file.
        dense: how many, where neither that nor ``first_k_dense_replace`` says it.
    """
    listed, layers = fields.raw("mlp_layer_types"), fields.integer("num_hidden_layers", high=MOST_LAYERS)
    first = read_first(fields, dense)
    if listed is None:
        return tuple(layer >= first for layer in range(layers))
    if not isinstance(listed, list) or any(kind not in ("dense", "sparse") for kind in listed):
        fields.problem("mlp_layer_types", "isobit knows dense and sparse")
    elif fields.sound and len(listed) != layers:
        fields.problem("mlp_layer_types", f"expected one for each of {layers} layers, found {len(listed)}")
    elif fields.sound:
        return tuple(kind == "sparse" for kind in listed)
    return (True,) * layers


def _only_one(fields: Fields, keys: tuple[str, ...]) -> str:
    """The one of several names for the same number that the file has; all that it has must say the same."""
    there = [key for key in keys if fields.raw(key) is not None]
    for other in there[1:]:
        if _of_all(fields.raw(other)) != _of_all(fields.raw(there[0])):
            fields.problem(other, f"{there[0]} says {shown(fields.raw(there[0]))}, and means the same")
    return there[0] if there else keys[0]


def _of_all(found: object) -> object:
    """A number of each layer, where a list has the same for all of them."""
    return found[0] if isinstance(found, list) and found and all(one == found[0] for one in found) else found


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
    step, dense = fields.integer("decoder_sparse_step", 1), read_layers(fields, "mlp_only_layers") or frozenset()
    return lambda layer: layer not in dense and (layer + 1) % step == 0
