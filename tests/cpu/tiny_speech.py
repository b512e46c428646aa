"""A tiny random pipeline of speech: every part with the names and the kinds of shapes of the published one."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

CODES, DIM, TEXT, MEL, DEPTH, ROUNDS, INNER = 40, 128, 16, 20, 2, 2, 96
WIDTH = 16  # of the vocoder
HIDDEN, VOCAB = 64, 384
CONFIG = (
    "# made by a test\nrate: 25\nflow: !new:flow.flow.Flow\n  input_frame_rate: !ref <rate>\n  mel_framerate: 50\n"
    f"  mel_dim: {MEL}\n  spkr_emb_adaLN: True\n  speech_token_cfg: False\n  remove_spkr_concat_condition: True\n"
    "  loss_type: l2\n"
)
ENCODER = {
    "model_type": "whisper", "d_model": 32, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "num_mel_bins": 16, "max_source_positions": 1500, "activation_function": "gelu", "pooling_kernel_size": 2,
    "pooling_type": "avg", "pooling_position": 2, "quantize_vocab_size": CODES, "quantize_position": 3,
}  # fmt: skip


class Speaker:
    """Stands for CAM++: some numbers that depend on the filter bank."""

    def __call__(self, bank: np.ndarray) -> np.ndarray:
        wave = np.sin(np.arange(192)[:, None] * np.arange(80))
        return (wave @ bank.std(axis=0)).astype(np.float32)


class Numbers:
    """Random tensors of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        fan = 1
        for size in shape[1:]:
            fan *= size
        return torch.randn(*shape, generator=self.generator) * (scale / fan**0.5 if len(shape) > 1 else 0.1 * scale)

    def linear(self, name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows)}


def flow_tensors(seed: int = 0, beside: int = 0, norms: bool = True) -> dict[str, Tensor]:
    n, found = Numbers(seed), dict[str, Tensor]()
    found |= n.linear("time_embed.time_mlp.0", DIM, 256) | n.linear("time_embed.time_mlp.2", DIM, DIM)
    found["text_emb_layer.text_embed.weight"] = torch.randn(CODES + 3, TEXT, generator=n.generator)
    for at in range(ROUNDS):
        front = f"text_emb_layer.text_blocks.{at}"
        found |= {f"{front}.dwconv.weight": n(TEXT, 1, 7), f"{front}.dwconv.bias": n(TEXT)}
        found |= {f"{front}.norm.weight": 1 + n(TEXT), f"{front}.norm.bias": n(TEXT)}
        found |= {f"{front}.grn.{one}": n(2 * TEXT).reshape(1, 1, -1) for one in ("gamma", "beta")}
        found |= n.linear(f"{front}.pwconv1", 2 * TEXT, TEXT) | n.linear(f"{front}.pwconv2", TEXT, 2 * TEXT)
    found |= n.linear("emb_concator.proj", DIM, 2 * MEL + beside + TEXT)
    for at in (0, 2):
        front = f"emb_concator.conv_pos_embed.conv1d.{at}"
        found |= {f"{front}.weight": n(DIM, DIM // 16, 31), f"{front}.bias": n(DIM)}
    more = 192 if norms else 0
    for at in range(DEPTH):
        front = f"transformer_blocks.{at}"
        found |= n.linear(f"{front}.attn_norm.linear", 6 * DIM, DIM + more)
        for one in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= n.linear(f"{front}.attn.{one}", DIM, DIM)
        found |= n.linear(f"{front}.ff.ff.0.0", INNER, DIM) | n.linear(f"{front}.ff.ff.2", DIM, INNER)
    found |= n.linear("norm_out.linear", 2 * DIM, DIM + more) | n.linear("proj_out", MEL, DIM)
    made = {f"estimator.{name}": tensor for name, tensor in found.items()}
    made["estimator.rotary_embed.inv_freq"] = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    if beside:
        made |= n.linear("spk_embed_affine_layer", beside, 192)
    return made


def vocoder_tensors(seed: int = 1, form: str = "parametrized") -> dict[str, Tensor]:
    """In one of the forms that torch gives normed weights: parametrized, pairs or plain."""
    n, found = Numbers(seed), dict[str, Tensor]()

    def normed(name: str, *shape: int) -> None:
        names = {
            "parametrized": (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
            "pairs": (".weight_g", ".weight_v"),
        }.get(form)
        length, direction = n(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).abs() + 0.5, n(*shape, scale=3)
        if names is None:
            found[f"{name}.weight"] = length * direction / direction.flatten(1).norm(dim=1).reshape(length.shape)
        else:
            found.update({name + names[0]: length, name + names[1]: direction})

    def convolution(name: str, rows: int, columns: int, kernel: int) -> None:
        normed(name, rows, columns, kernel)
        found[f"{name}.bias"] = n(rows)

    def residual(name: str, width: int, kernel: int) -> None:
        for at in range(3):
            for one in ("1", "2"):
                convolution(f"{name}.convs{one}.{at}", width, width, kernel)
                found[f"{name}.activations{one}.{at}.alpha"] = 1 + n(width)

    convolution("conv_pre", WIDTH, MEL, 7)
    convolution("conv_post", 18, WIDTH // 8, 7)
    found |= n.linear("m_source.l_linear", 1, 9)
    for at in range(5):
        convolution(f"f0_predictor.condnet.{2 * at}", 12, 12 if at else MEL, 3)
    found |= {
        "f0_predictor.classifier.weight": n(1, 12, scale=400),
        "f0_predictor.classifier.bias": torch.tensor([60.0]),
    }
    for at, (kernel, down, source) in enumerate(((16, 15, 7), (11, 3, 7), (7, 1, 11))):
        above, here = WIDTH >> at, WIDTH >> (at + 1)
        normed(f"ups.{at}", above, here, kernel)
        found[f"ups.{at}.bias"] = n(here)
        found |= {
            f"source_downs.{at}.weight": n(here, 18, 2 * down if down > 1 else 1),
            f"source_downs.{at}.bias": n(here),
        }
        residual(f"source_resblocks.{at}", here, source)
        for number, kernel in enumerate((3, 7, 11)):
            residual(f"resblocks.{3 * at + number}", here, kernel)
    return found


def encoder_tensors(seed: int = 2, config: dict | None = None) -> dict[str, Tensor]:
    config = {**ENCODER, **(config or {})}
    n, found = Numbers(seed), dict[str, Tensor]()
    width, inner = config["d_model"], config["encoder_ffn_dim"]
    found |= {"conv1.weight": n(width, config["num_mel_bins"], 3), "conv1.bias": n(width)}
    found |= {"conv2.weight": n(width, width, 3), "conv2.bias": n(width)}
    found["embed_positions.weight"] = n(config["max_source_positions"], width)
    pooled = config["pooling_kernel_size"] or 1
    found["embed_positions2.weight"] = n(-(-config["max_source_positions"] // pooled), width)
    found["codebook.weight"] = n(CODES, width, scale=6)
    for at in range(config["encoder_layers"]):
        front = f"layers.{at}"
        for one in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= n.linear(f"{front}.self_attn.{one}", width, width)
        del found[f"{front}.self_attn.k_proj.bias"]
        for one in ("self_attn_layer_norm", "final_layer_norm"):
            found |= {f"{front}.{one}.weight": 1 + n(width), f"{front}.{one}.bias": n(width)}
        found |= n.linear(f"{front}.fc1", inner, width) | n.linear(f"{front}.fc2", width, inner)
    found |= {"layer_norm.weight": 1 + n(width), "layer_norm.bias": n(width)}
    return {f"model.encoder.{name}": tensor for name, tensor in found.items()} | {"model.decoder.x": n(3)}


def save_llm(folder: Path, seed: int = 3) -> None:
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 128, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    n = Numbers(seed)
    found = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=n.generator),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    found["lm_head.weight"] = n(VOCAB, HIDDEN, scale=2)
    for at in range(2):
        front = f"model.layers.{at}"
        for one, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            found[f"{front}.self_attn.{one}.weight"] = n(rows, HIDDEN)
        found |= {f"{front}.mlp.{one}.weight": n(128, HIDDEN) for one in ("gate_proj", "up_proj")}
        found[f"{front}.mlp.down_proj.weight"] = n(HIDDEN, 128)
        found |= {
            f"{front}.{one}.weight": torch.ones(HIDDEN) for one in ("input_layernorm", "post_attention_layernorm")
        }
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def save_tokenizer(folder: Path, codes: int = CODES) -> None:
    """Bytes, then the marks and the sounds, as GLM-4's file of ranks and its tokenizer_config.json have them."""
    folder.mkdir(parents=True)
    lines = [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines))
    names = ["<|endoftext|>", "<|user|>", "<|begin_of_audio|>", "<|SH|>", *(f"<|audio_{at}|>" for at in range(codes))]
    added = {str(256 + at): {"content": name, "special": at < 3} for at, name in enumerate(names)}
    config = {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": added, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_pipeline(folder: Path) -> Path:
    """The whole folder; ``frontend/campplus.onnx`` is there and empty."""
    save_llm(folder / "llm")
    save_tokenizer(folder / "vq32k-phoneme-tokenizer")
    for name in ("speech_tokenizer", "flow", "frontend", "hift"):
        (folder / name).mkdir()
    (folder / "speech_tokenizer" / "config.json").write_text(json.dumps(ENCODER))
    save_file(encoder_tensors(), folder / "speech_tokenizer" / "model.safetensors", {"format": "pt"})
    (folder / "flow" / "config.yaml").write_text(CONFIG)
    torch.save({"model": flow_tensors(), "step": 7}, folder / "flow" / "flow.pt")
    torch.save(vocoder_tensors(), folder / "hift" / "hift.pt")
    (folder / "frontend" / "campplus.onnx").write_bytes(b"")
    return folder


def recording(seconds: float = 2.0, rate: int = 22050) -> np.ndarray:
    """Something like a voice."""
    time = np.arange(int(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 140 * number * time + number) / number for number in range(1, 12))
    return (0.1 * tone * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)
