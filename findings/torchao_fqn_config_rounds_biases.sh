#!/usr/bin/env bash
# transformers 5.23.0 with torchao 0.18.0, on a CPU
# Qwen2, whose q, k and v have biases, is quantized on loading by TorchAoConfig: by one configuration for all, and by FqnToConfig, which
# names it for "_default", for a module, for modules by a pattern, and for their weights by a pattern.
#
# Guess: it is the same each time: the weights of linears, and nothing else.
# Seen:  FqnToConfig quantizes the biases of the modules too, as if each were one row under one scale. It loads without a word, and the
#        first forward is a NotImplementedError (Int8WeightOnlyConfig, Float8WeightOnlyConfig). With IntxWeightOnlyConfig
#        loading fails already. Only a pattern that ends in "\.weight" leaves biases alone.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 torchao==0.18.0 accelerate==1.15.0
cat > run.py << 'END'
import torch
import transformers as T
from torchao.quantization import Float8WeightOnlyConfig, FqnToConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig

T.logging.set_verbosity(T.logging.CRITICAL)
torch.manual_seed(0)
made = T.Qwen2Config(
    vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, initializer_range=0.1, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
model = T.Qwen2ForCausalLM(made)
for name, parameter in model.named_parameters():
    if name.endswith(".bias"):
        torch.nn.init.normal_(parameter)
model.to(torch.bfloat16).save_pretrained("plain")
IDS = torch.tensor([list(range(3, 40))])


def tried(config: object) -> tuple[str, str, str]:
    """What became of k_proj's weight and bias, and of a forward."""
    method = T.TorchAoConfig(config)
    try:
        loaded = T.AutoModelForCausalLM.from_pretrained("plain", dtype=torch.bfloat16, quantization_config=method)
    except RuntimeError:
        return "not loaded", "", ""
    layer = loaded.model.layers[0].self_attn.k_proj
    try:
        with torch.no_grad():
            done = "runs" if loaded(IDS).logits.isfinite().all() else "not finite"
    except NotImplementedError:
        done = "NotImplementedError"
    return type(layer.weight.data).__name__, type(layer.bias.data).__name__, done


KEYS = ("_default", "model.layers.0.self_attn.k_proj", r"re:.*\.self_attn\.[qkv]_proj", r"re:.*_proj\.weight")
found = {}
for kind in (Int8WeightOnlyConfig, Float8WeightOnlyConfig):
    found[kind.__name__, "alone"] = tried(kind())
    found |= {(kind.__name__, key): tried(FqnToConfig({key: kind()})) for key in KEYS}
found["IntxWeightOnlyConfig", "alone"] = tried(IntxWeightOnlyConfig(torch.int8))
found["IntxWeightOnlyConfig", "_default"] = tried(FqnToConfig({"_default": IntxWeightOnlyConfig(torch.int8)}))
for (kind, key), (weight, bias, done) in found.items():
    print(f"{kind}, {key}: weight {weight}" + (f", bias {bias}, {done}" if bias else ""))
same = found["IntxWeightOnlyConfig", "_default"][0] == "not loaded"
for (kind, key), (weight, bias, done) in found.items():
    if key in ("alone", KEYS[3]):
        same = same and weight != "Tensor" and (bias, done) == ("Tensor", "runs")
    elif kind != "IntxWeightOnlyConfig":
        same = same and bias == weight == kind.removesuffix("WeightOnlyConfig") + "Tensor" and done == "NotImplementedError"
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
