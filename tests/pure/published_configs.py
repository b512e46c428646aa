"""The keys of published ``config.json`` files, with their values: what must be read without complaint.

Facts of public models, collected from model pages, documentation and logs.
"""

from __future__ import annotations

from typing import Any

LLAMA1: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 2048,
    "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.28.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA2 = {key: value for key, value in LLAMA1.items() if key != "max_sequence_length"} | {
    "_name_or_path": "meta-llama/Llama-2-7b-hf", "max_position_embeddings": 4096, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "transformers_version": "4.31.0.dev0",
}  # fmt: skip
LLAMA3 = LLAMA2 | {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001,
    "intermediate_size": 14336, "max_position_embeddings": 8192, "num_key_value_heads": 8, "rope_theta": 500000.0,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.0.dev0", "vocab_size": 128256,
}  # fmt: skip
LLAMA31_ROPE = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LLAMA31 = LLAMA3 | {
    "eos_token_id": [128001, 128008, 128009], "max_position_embeddings": 131072, "mlp_bias": False,
    "rope_scaling": LLAMA31_ROPE, "transformers_version": "4.42.3",
}  # fmt: skip
SMOLLM2 = LLAMA2 | {
    "attention_bias": False, "attention_dropout": 0.0, "hidden_size": 960, "initializer_range": 0.02,
    "intermediate_size": 2560, "is_llama_config": True, "max_position_embeddings": 8192, "num_attention_heads": 15,
    "num_key_value_heads": 5, "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True,
    "mlp_bias": False, "vocab_size": 49152, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
}  # fmt: skip
MISTRAL1: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
NEMO = MISTRAL1 | {
    "attention_dropout": 0.0, "head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 131072,
    "num_hidden_layers": 40, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 131072,
}  # fmt: skip
QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 152064,
    "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False,
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
SMOLLM3: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 11008, "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536,
    "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3", "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
    "pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0,
    "sliding_window": None, "torch_dtype": "bfloat16", "use_cache": False, "use_sliding_window": False,
    "vocab_size": 128256,
}  # fmt: skip
EXAONE4: dict[str, Any] = {
    "architectures": ["Exaone4ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 361,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 27392,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16, "max_position_embeddings": 131072,
    "model_type": "exaone4", "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8,
    "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_theta": 1000000, "sliding_window": 4096,
    "rope_scaling": LLAMA31_ROPE | {"factor": 16.0}, "sliding_window_pattern": "LLLG", "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 102400,
}  # fmt: skip
HUNYUAN: dict[str, Any] = {
    "add_classification_head": False, "architectures": ["HunYuanDenseV1ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "attention_head_dim": 128, "bos_token_id": 1, "cla_share_factor": 2, "class_num": 0,
    "dense_list": [4096, 0], "eod_token_id": 127967, "eos_token_id": 127960, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "mlp_bias": False, "model_type": "hunyuan_v1_dense", "norm_type": "rms", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "org_vocab_size": 128167, "pad_token_id": 127961,
    "pool_type": "last", "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                     "mscale_all_dim": 0.0, "type": "dynamic"},
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "use_cla": False, "use_qk_norm": True,
    "vocab_size": 128167,
}  # fmt: skip
# What transformers 4 wrote besides into a file that holds everything (use_diff=False), or by way of PEFT and trainers.
EVERYTHING = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {}, "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False, "is_decoder": False, "cross_attention_hidden_size": None, "add_cross_attention": False,
    "tie_encoder_decoder": False, "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False,
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "num_return_sequences": 1, "output_scores": False,
    "return_dict_in_generate": False, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "remove_invalid_values": False, "exponential_decay_length_penalty": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "finetuning_task": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": None, "prefix": None, "pad_token_id": None,
    "sep_token_id": None, "decoder_start_token_id": None, "task_specific_params": None, "problem_type": None,
    "_attn_implementation_autoset": True, "_commit_hash": "0" * 40,
}  # fmt: skip
GPTQ = {"bits": 4, "group_size": 128, "quant_method": "gptq", "desc_act": True, "sym": True}
AWQ = {"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm", "zero_point": True}
FULL28 = ["full_attention"] * 28

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 7B": LLAMA1,
    "Llama 2 7B": LLAMA2,
    "Llama 2 70B chat": LLAMA2 | {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
                                  "num_hidden_layers": 80, "num_key_value_heads": 8, "pretraining_tp": 2},
    "Llama 3 8B": LLAMA3,
    "Llama 3.1 8B": LLAMA31,
    "Llama 3.2 1B": LLAMA31 | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                               "rope_scaling": LLAMA31_ROPE | {"factor": 32.0}, "tie_word_embeddings": True},
    "Llama 3.3 70B": LLAMA31 | {"head_dim": 128, "hidden_size": 8192, "intermediate_size": 28672,
                                "num_attention_heads": 64, "num_hidden_layers": 80},
    "Llama 3.2, unsloth": LLAMA31 | {"pad_token_id": 128004, "unsloth_fixed": True, "unsloth_version": "2025.3.19"},
    "Llama 3.1 by transformers 5": {key: value for key, value in LLAMA31.items()
                                    if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
    | {"dtype": "bfloat16", "rope_parameters": LLAMA31_ROPE | {"rope_theta": 500000.0}},
    "DeepSeek LLM 7B": LLAMA2 | {"bos_token_id": 100000, "eos_token_id": 100001, "num_hidden_layers": 30,
                                 "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "vocab_size": 102400},
    "DeepSeek Coder 6.7B": LLAMA2 | {"max_position_embeddings": 16384, "rope_theta": 100000, "vocab_size": 32256,
                                     "rope_scaling": {"factor": 4.0, "type": "linear"}},
    "DeepSeek R1 Distill Llama": LLAMA31 | {"eos_token_id": 128001, "transformers_version": "4.43.0.dev0"},
    "Yi 6B": LLAMA2 | {"intermediate_size": 11008, "num_key_value_heads": 4, "rope_theta": 5000000.0,
                       "vocab_size": 64000},
    "Yi 34B 200K": LLAMA2 | {"hidden_size": 7168, "intermediate_size": 20480, "max_position_embeddings": 200000,
                             "num_attention_heads": 56, "num_hidden_layers": 60, "num_key_value_heads": 8,
                             "rope_theta": 10000000.0, "vocab_size": 64000},
    "TinyLlama": LLAMA2 | {"attention_bias": False, "hidden_size": 2048, "intermediate_size": 5632,
                           "max_position_embeddings": 2048, "num_hidden_layers": 22, "num_key_value_heads": 4},
    "SmolLM2": SMOLLM2,
    "Vicuna 7B 16K": LLAMA2 | {"max_sequence_length": 16384, "rope_scaling": {"factor": 4.0, "type": "linear"}},
    "Code Llama": LLAMA2 | {"max_position_embeddings": 16384, "rope_theta": 1000000, "vocab_size": 32016},
    "Falcon 3": LLAMA3 | {"activation": "swiglu", "head_dim": 256, "hidden_size": 3072, "num_attention_heads": 12,
                          "num_key_value_heads": 4, "rope_theta": 1000042, "mlp_bias": False},
    "Nanbeige 4.1": LLAMA3 | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "head_dim": 128, "hidden_size": 2560,
                              "num_attention_heads": 20, "num_key_value_heads": 4, "rope_theta": 70000000},
    "HyperCLOVA X SEED": LLAMA3 | {"attention_multiplier": 64**-0.5, "embd_pdrop": 0.0, "embedding_multiplier": 1.0,
                                   "end_token_id": 100257, "head_dim": 64, "logits_scaling": 1.0, "resid_pdrop": 0.0,
                                   "residual_multiplier": 1.0, "summary_first_dropout": 0.1},
    "LLaMA 2 7B 32K": LLAMA2 | {"auto_map": {"AutoModelForCausalLM": "modeling_flash_llama.LlamaForCausalLM"},
                                "max_position_embeddings": 32768, "rope_scaling": {"factor": 8.0, "type": "linear"}},
    "Paddle's dump": LLAMA2 | {"alibi": False, "attention_probs_dropout_prob": 0.1, "dtype": "float16",
                               "hidden_dropout_prob": 0.1, "paddlenlp_version": None, "rope_scaling_factor": 1.0,
                               "rope_scaling_type": None, "use_recompute": False, "virtual_pp_degree": 1},
    "old and whole": LLAMA2 | EVERYTHING,
    "Llama 2, GPTQ": LLAMA2 | {"quantization_config": GPTQ},
    "Llama 3.1, compressed": LLAMA31 | {"quantization_config": {"quant_method": "compressed-tensors"}},
    "Llama 3, MLX": LLAMA3 | {"quantization": {"group_size": 64, "bits": 4}},
    "Mistral 7B v0.1": MISTRAL1,
    "Mistral 7B v0.2": MISTRAL1 | {"attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None},
    "Mistral 7B v0.3": MISTRAL1 | {"attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None,
                                   "vocab_size": 32768},
    "Zephyr": MISTRAL1 | {"_name_or_path": "zephyr", "pad_token_id": 2, "quantization_config": AWQ},
    "Yarn Mistral 7B 128K": MISTRAL1 | {
        "auto_map": {"AutoConfig": "configuration_mistral.MistralConfig",
                     "AutoModelForCausalLM": "modeling_mistral_yarn.MistralForCausalLM"},
        "max_sequence_length": 131072, "sliding_window": 131072,
        "rope_scaling": {"factor": 16.0, "finetuned": True, "original_max_position_embeddings": 8192, "type": "yarn"}},
    "Mistral Nemo": NEMO,
    "Ministral 8B": NEMO | {"hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 32768,
                            "num_hidden_layers": 36, "rope_theta": 100000000.0, "sliding_window": 32768},
    "Mistral Small 24B": NEMO | {"intermediate_size": 32768, "max_position_embeddings": 32768,
                                 "rope_theta": 100000000.0},
    "Devstral, transformers 5": {key: value for key, value in NEMO.items() if key not in ("rope_theta", "torch_dtype")}
    | {"dtype": "bfloat16", "pad_token_id": 11, "unsloth_version": "2025.12.5",
       "rope_parameters": {"rope_theta": 1000000000.0, "rope_type": "default"}},
    "Qwen1.5 7B": QWEN2 | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
                           "num_hidden_layers": 32, "num_key_value_heads": 32, "sliding_window": 32768},
    "Qwen2 7B": QWEN2,
    "Qwen2.5 0.5B": QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24,
                             "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
                             "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False},
    "Qwen2.5 3B": QWEN2 | {"hidden_size": 2048, "max_window_layers": 70, "num_attention_heads": 16,
                           "num_key_value_heads": 2, "sliding_window": 32768},
    "Qwen2.5 Coder with yarn": QWEN2 | {
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    "Qwen2.5 Math": QWEN2 | {"max_position_embeddings": 4096, "rope_theta": 10000, "sliding_window": 4096,
                             "use_mrope": False},
    "QwQ 32B": QWEN2 | {"hidden_size": 5120, "max_position_embeddings": 40960, "max_window_layers": 64,
                        "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8,
                        "sliding_window": 32768},
    "DeepSeek R1 Distill Qwen": QWEN2 | {"bos_token_id": 151646, "max_position_embeddings": 131072, "use_mrope": False,
                                         "sliding_window": 4096},
    "Qwen2.5, a classifier's leftovers": QWEN2 | {"id2label": {"0": "no"}, "label2id": {"no": 0}, "pad_token_id": 1},
    "Qwen2.5 by transformers 5": {key: value for key, value in QWEN2.items()
                                  if key not in ("rope_theta", "torch_dtype")}
    | {"dtype": "bfloat16", "layer_types": FULL28, "pad_token_id": None, "sliding_window": None, "use_mrope": False,
       "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}},
    "Qwen3 0.6B": QWEN3,
    "Qwen3 Embedding": QWEN3 | {"eos_token_id": 151643, "max_position_embeddings": 32768, "vocab_size": 151669},
    "Qwen3 Reranker": QWEN3 | {"max_position_embeddings": 40960, "vocab_size": 151669},
    "Qwen3 by transformers 4.57": QWEN3 | {"dtype": "bfloat16", "layer_types": FULL28},
    "Qwen3 with yarn": QWEN3 | {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    "Gemma 3 1B": GEMMA3,
    "Gemma 3, a window in five of six": GEMMA3 | {"sliding_window_pattern": None, "_sliding_window_pattern": 6},
    "Gemma 3 by transformers 5": {key: value for key, value in GEMMA3.items() if not key.startswith("rope_")}
    | {"rope_parameters": {"full_attention": {"rope_theta": 1000000, "rope_type": "default"},
                           "sliding_attention": {"rope_theta": 10000, "rope_type": "default"}},
       "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2,
       "sliding_window_pattern": None, "_sliding_window_pattern": 6, "use_bidirectional_attention": False},
    "SmolLM3 3B": SMOLLM3,
    "EXAONE 4 32B": EXAONE4,
    "EXAONE 4 1.2B": EXAONE4 | {"hidden_size": 2048, "intermediate_size": 4096, "layer_types": ["full_attention"] * 30,
                                "head_dim": 64, "max_position_embeddings": 65536, "num_attention_heads": 32,
                                "num_hidden_layers": 30, "sliding_window": None, "sliding_window_pattern": None,
                                "rope_scaling": LLAMA31_ROPE | {"factor": 32.0}, "tie_word_embeddings": True},
    "Hunyuan 7B": HUNYUAN,
    "Qwen3 FP8": QWEN3 | {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                                                  "weight_block_size": [128, 128], "activation_scheme": "dynamic"}},
}  # fmt: skip
