"""Keys of ``config.json`` that no family reads, and what they mean for the computation.

Four tables, asked in this order: ELSEWHERE (other parts of isobit read it), INERT (never changes what a decoder
computes), SAME (another name for what was read: harmless while it says the same), NEUTRAL (harmless with these values).
Any other key is harmless while it is null, false, zero or empty, which is how tools write "this model has none of it";
with a value it is refused by name. A key belongs here only if there is a model with it: the tests have published ones.
"""

from __future__ import annotations

from typing import Any

from isobit.models.fields import Fields, equals_one_of

ELSEWHERE = frozenset(
    "architectures model_type quantization quantization_config compression_config bos_token_id"
    " eos_token_id pad_token_id".split()
)

INERT = frozenset(
    # where the file comes from, and what wrote it
    "_name_or_path name_or_path _commit_hash _from_model_config model_name base_model license language library_name"
    " tags description _description comment _comment author created_by is_llama_config transformers.js_config"
    # the sizes of a context are the model's to say: max_position_embeddings does
    " max_sequence_length max_seq_len max_seq_length seq_length model_max_length n_ctx n_positions context_length"
    " tokenizer_class tokenizer_type tokenizer_model_type bos_token eos_token pad_token unk_token unpadded_vocab_size"
    # how transformers or others run the same computation
    " use_cache attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset"
    " _experts_implementation _experts_implementation_internal _flash_attn_2_enabled use_flash_attn"
    " use_flash_attention use_flash_attention_2 use_flashattn flash_attn use_sdpa use_fused_rope use_fused_rms_norm"
    " use_memory_efficient_attention use_grouped_mm use_xformers pretraining_tp tensor_parallel_degree"
    " virtual_pp_degree torchscript use_bfloat16 chunk_size_feed_forward is_decoder attention_softmax_in_fp32"
    # what transformers returns besides logits
    " return_dict output_attentions output_hidden_states output_scores output_router_logits num_logits_to_keep"
    " logits_to_keep return_dict_in_generate tie_last_hidden_states"
    # training and initialisation
    " initializer_range initializer_factor initializer_cutoff_factor init_std init_method init_device"
    " rescale_prenorm_residual gradient_checkpointing use_reentrant_checkpointing use_recompute neftune_noise_alpha"
    " label_smoothing aux_loss_coef router_aux_loss_coef z_loss_coefficient mtp_loss_scaling_factor"
    " router_jitter_noise aux_loss_alpha seq_aux embedding_initializer_range load_balance_coeff"
    " input_jitter_noise"
    # of layers that guess further tokens, which are left out
    " mtp_layer_types mtp_mlp_layer_types"
    # heads of other tasks, which a model for text has not
    " id2label label2id num_labels problem_type finetuning_task task_specific_params classifier_bias"
    " classifier_activation tf_legacy_loss summary_type summary_use_proj summary_activation summary_proj_to_labels"
    # how to sample: old transformers wrote it here; generation_config.json is where it is read from
    " max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups"
    " diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff penalty_alpha"
    " repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size"
    " bad_words_ids force_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values"
    " exponential_decay_length_penalty suppress_tokens begin_suppress_tokens renormalize_logits guidance_scale"
    " cache_implementation num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold"
    " assistant_lookbehind target_lookbehind prefix".split()
)
INERT_BEGINNINGS = ("unsloth_",)
INERT_ENDINGS = ("dropout", "dropout_prob", "dropout_p", "pdrop", "layerdrop", "_version", "_token_id", "_token_ids")

# Another name, and the field of ModelConfig that it must agree with.
SAME = {
    "n_layer": "num_layers", "n_layers": "num_layers", "num_layers": "num_layers",
    "n_head": "num_heads", "n_heads": "num_heads", "num_heads": "num_heads",
    "n_kv_heads": "num_kv_heads", "num_kv_heads": "num_kv_heads", "multi_query_group_num": "num_kv_heads",
    "n_embd": "hidden_size", "d_model": "hidden_size", "dim": "hidden_size", "emb_dim": "hidden_size",
    "ffn_dim": "intermediate_size", "ffn_hidden_size": "intermediate_size", "d_ff": "intermediate_size",
    "n_inner": "intermediate_size", "kv_channels": "head_dim", "head_size": "head_dim",
    "attention_head_size": "head_dim", "rotary_dim": "head_dim", "query_pre_attn_scalar": "head_dim",
    "rms_norm_eps": "norm_eps",
    "layer_norm_eps": "norm_eps", "layer_norm_epsilon": "norm_eps", "norm_eps": "norm_eps", "norm_epsilon": "norm_eps",
    "padded_vocab_size": "vocab_size",
}  # fmt: skip

_ONE = (1,)
_SILU = ("silu", "swish", "swiglu")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # factors: zero would not be neutral
    **dict.fromkeys(
        "embedding_multiplier residual_multiplier logits_scaling logit_scale lm_head_multiplier key_multiplier"
        " attention_in_multiplier attention_out_multiplier attention_value_scale scale_emb embedding_scale"
        " rope_scaling_factor logits_mup_width_multiplier rope_percent rope_pct rotary_pct rotary_percent"
        " rope_ratio rotary_scaling_factor".split(),
        _ONE,
    ),
    "attention_multiplier": (),  # the scale of attention itself: see _attention_scale
    "scale_depth": (), "dim_model_base": (),
    "hidden_activation": _SILU, "activation": _SILU, "activation_function": _SILU, "mlp_hidden_act": _SILU,
    "ff_activation": _SILU,
    "norm_type": ("rmsnorm", "rms_norm", "RMSNorm"), "normalization": ("rmsnorm", "rms_norm", "RMSNorm"),
    "position_embedding_type": ("rope", "rotary"), "pos_emb": ("rope", "rotary"),
    # what a Llama has, and false would take away
    **dict.fromkeys(
        "causal is_causal use_rope rope use_rotary_embedding do_layer_norm_before pre_norm no_bias gated_mlp"
        " scale_attn_weights layer_norm_elementwise_affine".split(),
        (True,),
    ),
}  # fmt: skip

# What a key that changes the computation is about, for people: the first fragment that its name has.
MEANINGS = (
    ("dual_chunk", "dual chunk attention, for contexts longer than the model was trained for"),
    ("softcap", "soft capping of logits"), ("soft_cap", "soft capping of logits"),
    ("sliding_window", "attention to a window of tokens"), ("layer_types", "layers of different kinds"),
    ("topk_", "a mixture of experts"), ("n_group", "a mixture of experts"),
    ("expert", "a mixture of experts"), ("moe", "a mixture of experts"), ("router", "a mixture of experts"),
    ("lora_rank", "latent attention (MLA)"), ("qk_nope", "latent attention (MLA)"),
    ("qk_rope", "latent attention (MLA)"), ("v_head_dim", "latent attention (MLA)"),
    ("mamba", "layers with a recurrent state"), ("ssm", "layers with a recurrent state"),
    ("linear_attn", "layers with a recurrent state"), ("conv", "convolutions"),
    ("multiplier", "a factor that plain Llamas have not"), ("scal", "a factor that plain Llamas have not"),
    ("qk_norm", "another norm of queries and keys"), ("qk_layer", "another norm of queries and keys"),
    ("clip", "clipped activations"), ("bidirectional", "attention to later tokens"), ("alibi", "ALiBi positions"),
    ("rope", "another rotary embedding"), ("rotary", "another rotary embedding"),
    ("nextn", "layers that predict more than one token"), ("mtp", "layers that predict more than one token"),
    ("norm", "other norms"), ("activation", "another activation"), ("bias", "biases where plain Llamas have none"),
    ("cross_attention", "an encoder beside the decoder"), ("encoder", "an encoder beside the decoder"),
    ("lora", "an adapter: merge it into its base model first"), ("adapter", "an adapter"),
    ("vision", "images"), ("image", "images"), ("video", "video"), ("audio", "sound"),
    ("per_layer", "layers that differ from each other"), ("_config", "a model within the model"),
)  # fmt: skip


def is_harmless(key: str, value: Any, read: dict[str, Any]) -> bool:
    """Whether a key that no family reads leaves the computation as it is.

    Args:
        key: its name.
        value: its value.
        read: what was read so far, by the names of ModelConfig's fields.
    """
    if value is None or key in ELSEWHERE or key in INERT:
        return True
    if key.startswith(INERT_BEGINNINGS) or key.endswith(INERT_ENDINGS):
        return True
    if key in SAME:
        return equals_one_of(value, (read[SAME[key]],)) or value == 0
    if key == "attention_multiplier":
        return _attention_scale(value, read["head_dim"])
    if key in NEUTRAL:
        return equals_one_of(value, NEUTRAL[key])
    return not value


def _attention_scale(value: Any, head_dim: int) -> bool:
    usual = head_dim**-0.5
    return isinstance(value, float) and abs(value - usual) <= 1e-6 * usual


def complain_of_unread(fields: Fields, read: dict[str, Any]) -> None:
    """Complains about every key that nobody read and that may change the computation."""
    for key, value in fields.unread():
        if not isinstance(key, str):
            fields.problem(key, "the names of keys are text")
        elif not is_harmless(key, value, read):
            fields.problem(key, _why(key, read))


def _why(key: str, read: dict[str, Any]) -> str:
    if key in SAME:
        return f"another number stands elsewhere for the same thing: {read[SAME[key]]}"
    meaning = next((words for fragment, words in MEANINGS if fragment in key.lower()), None)
    if meaning is not None:
        return f"this is about {meaning}, which isobit does not implement for this architecture"
    return "isobit does not know this key, nor whether it changes what the model computes; remove it if it does not"
