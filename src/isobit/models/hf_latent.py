"""The keys of a ``config.json`` of DeepSeek's models: latent attention (MLA), and experts from some layer on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from isobit.models.config import LatentAttention, LayerSpec, ModelConfig
from isobit.models.feed_forward import Experts, GatedMlp, Router
from isobit.models.fields import LARGEST_SIZE, Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common
from isobit.models.hf_experts import read_counts, read_first, read_groups, with_experts
from isobit.models.hf_rope import Common, read_rope
from isobit.models.rotary import Rope

EPS = 1e-6  # of the norms of latents: DeepSeek's own code and transformers never take rms_norm_eps there


def read_sigmoid(config: Fields, family: str, *, first_dense: int, max_positions: int) -> ModelConfig:
    """A model with latent attention whose router takes a sigmoid and a correction: DeepSeek V3, and those who followed.

    Args:
        config: the file.
        family: name of the file in ``archs/``.
        first_dense: layers in front without experts when first_k_dense_replace is absent.
        max_positions: max_position_embeddings when the key is absent.
    """
    part = read_latent(config, interleaved=config.flag("rope_interleave", True))
    config.only("scoring_func", ("sigmoid",), "router")
    config.only("topk_method", ("noaux_tc",), "choice of experts")
    normed = config.flag("norm_topk_prob", True)
    router = Router(0, 0, "sigmoid", correction=True, group_score="two", renormalize=normed)
    style = Style(vary=read_experts(config, router, first_dense))
    guessing = config.integer("num_nextn_predict_layers", 0, low=0, high=MOST_LAYERS)
    model = read_with_latent(config, family, Common(max_positions=max_positions), style, part)
    return replace(model, predicted_layers=guessing)


def read_latent(config: Fields, *, interleaved: bool, eps: float = EPS) -> LatentAttention:
    """Latent attention from its keys; the rotary embedding and the scale follow from the common ones, see
    :func:`with_latent`.

    Args:
        config: the file; its common keys are read afterwards.
        interleaved: whether rotated pairs are neighbours.
        eps: of the norms of latents.
    """
    heads = config.integer("num_attention_heads")
    plain, rotated = (config.integer(key, high=4096) for key in ("qk_nope_head_dim", "qk_rope_head_dim"))
    if config.sound and rotated % 2:
        config.problem("qk_rope_head_dim", "is odd; rotary embeddings need pairs")
    _check_widths(config, heads, plain, rotated)
    low = None if config.raw("q_lora_rank") is None else config.integer("q_lora_rank")
    return LatentAttention(
        heads, low, config.integer("kv_lora_rank"), plain, rotated, config.integer("v_head_dim", high=4096),
        Rope(interleaved=interleaved), 1.0, config.flag("attention_bias", False), eps,
    )  # fmt: skip


def _check_widths(config: Fields, heads: int, plain: int, rotated: int) -> None:
    """That keys which say the same in other words do say the same."""
    for key, wanted in (
        ("num_key_value_heads", (heads,)), ("head_dim", (rotated, plain + rotated)), ("qk_head_dim", (plain + rotated,))
    ):  # fmt: skip
        found = config.integer(key, wanted[0], high=LARGEST_SIZE if key == "num_key_value_heads" else 4096)
        if config.sound and found not in wanted:
            config.problem(key, f"the other keys of latent attention make it {' or '.join(map(str, wanted))}")


def read_experts(
    config: Fields, router: Router, first_dense: int, *, grouped: bool = True
) -> Callable[[int, LayerSpec], LayerSpec]:
    """The mixture of experts of all layers but the first, for ``Style.vary``.

    Args:
        config: the file.
        router: how tokens find their experts; its numbers are read here.
        first_dense: first_k_dense_replace when the key is absent.
        grouped: whether groups of experts are looked at.
    """
    dense = read_first(config, first_dense)
    config.only("moe_layer_freq", (1,), "pattern of layers with experts")
    config.only("ep_size", (1,), "split of experts")
    if config.raw("n_routed_experts") is None:
        return lambda number, layer: layer
    experts, active = read_counts(config, 1, 1)
    found = read_groups(config, experts, active if grouped else 1)
    groups, chosen = found if grouped else (1, 1)
    size, shared = config.integer("moe_intermediate_size"), config.integer("n_shared_experts", 0, low=0)
    scale = config.number("routed_scaling_factor", 1.0)
    router = replace(router, experts=experts, active=active, groups=groups, active_groups=chosen, scale=scale)
    mixture = Experts(router, GatedMlp(size), GatedMlp(size * shared) if shared else None)
    return with_experts(mixture, lambda number: number >= dense)


def read_with_latent(config: Fields, family: str, common: Common, style: Style, part: LatentAttention) -> ModelConfig:
    """A model whose layers have latent attention.

    Args:
        config: the file.
        family: name of the file in ``archs/``.
        common: how the common keys are read; ``head_dim`` is said by other keys.
        style: what its layers are besides.
        part: the attention, from :func:`read_latent`.
    """
    common = replace(common, head_dim=part.rotated)
    return with_latent(read_common(config, family, common, style, rope=read_rope(config, common, part.rotated)), part)


def with_latent(model: ModelConfig, part: LatentAttention) -> ModelConfig:
    """A model whose layers have latent attention instead of the attention that the common keys describe."""
    layers = []
    for layer in model.layers:
        rope = replace(layer.attention.angles[0] or Rope(), interleaved=part.rope.interleaved)
        layers.append(replace(layer, attention=replace(part, rope=rope, scale=_scale(part, rope))))
    model = replace(model, layers=tuple(layers))
    if model.norm_eps != part.eps:
        note = (
            f"the norms within latent attention have an epsilon of {part.eps:g}, as in transformers, and not"
            f" rms_norm_eps = {model.norm_eps:g}, which vLLM takes for them, too"
        )
        model = replace(model, notes=(*model.notes, note))
    return model


def _scale(part: LatentAttention, rope: Rope) -> float:
    """The root of a head's width, and yarn's correction squared, which DeepSeek puts here and not into the angles."""
    scale = 1.0 / math.sqrt(part.query)
    if rope.kind == "default" or not rope.mscale_all_dim:
        return scale
    stretch = 1.0 if rope.factor <= 1 else 0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0
    return scale * stretch * stretch
