"""Makes the logits that the tests of `lowbit.models` compare with, by transformers on torch in float32.

    python scripts/make_reference_logits.py make                   # tests/models/reference/<variant>.{npz,json}
    python scripts/make_reference_logits.py smollm2 FILE.gguf      # tests/models/reference/smollm2_135m.npz
    python scripts/make_reference_logits.py check VARIANT FOLDER   # does transformers read what save_hf wrote?

Needs torch, transformers, safetensors and gguf; the tests need none of torch. Each variant is a tiny random model
whose weights are float16 values, so that the files stay small and exact. Its json holds the config twice, as a
config.json of transformers 4 ("old", which the model is made from) and as transformers 5 saves it ("new").
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

REFERENCE = Path(__file__).parent.parent / "tests" / "models" / "reference"
LENGTH = 24  # tokens; longer than max_position_embeddings of the variant "rope_dynamic"
BATCH = 2

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALED = {**BASE, "num_key_value_heads": 2, "tie_word_embeddings": True, "num_hidden_layers": 1}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama2": BASE,
    "llama3": {
        **BASE,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
        "eos_token_id": [2, 3],
    },
    "tinyllama": {**BASE, "num_attention_heads": 8, "num_key_value_heads": 1},
    "wide_heads": {**BASE, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24},
    "smollm2": {
        **BASE,
        "hidden_size": 36,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    # MobileLLM's own code calls the tie share_embedding.
    "mobilellm": {
        **BASE,
        "model_type": "mobilellm",
        "share_embedding": True,
        "layer_sharing": False,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "qwen2": {
        **BASE,
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 32,
    },
    "mistral": {**SCALED, "model_type": "mistral", "sliding_window": None},
    "rope_linear": {**SCALED, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "rope_dynamic": {
        **SCALED,
        "rope_scaling": {"type": "dynamic", "factor": 4.0},
        "max_position_embeddings": 16,
    },
    "rope_yarn": {**SCALED, "rope_scaling": YARN_ROPE},
    "rope_yarn_mscale": {
        **SCALED,
        "rope_scaling": {**YARN_ROPE, "beta_fast": 8.0, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False},
    },
}

SMOLLM2_TEXT = "The city of Lisbon lies on the western coast of Europe. In 1755 an earthquake destroyed most of it,"
SMOLLM2_STRIDE = 64  # every position keeps each 64th logit; the last one keeps them all


def make(variant: str, config: dict[str, Any]) -> None:
    """Writes one variant's weights, tokens, logits and configs."""
    torch.manual_seed(sorted(VARIANTS).index(variant))
    known = copy.deepcopy(config)  # transformers writes into the rope entry
    if config["model_type"] == "mobilellm":
        known |= {"model_type": "llama", "tie_word_embeddings": config["share_embedding"]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**known), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough for attention to be far from uniform, norms around one.
            values = torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.1) + ("norm" in name)
            weight.copy_(values.half().float())
        tokens = torch.randint(0, config["vocab_size"], (BATCH, LENGTH))
        logits = model(tokens).logits
    weights = {f"weights/{name}": weight.detach().half().numpy() for name, weight in model.named_parameters()}
    REFERENCE.mkdir(exist_ok=True)
    np.savez_compressed(
        REFERENCE / f"{variant}.npz", tokens=tokens.numpy().astype(np.int32), logits=logits.numpy(), **weights
    )
    new = model.config.to_diff_dict()
    if config["model_type"] == "mobilellm":
        new |= {"model_type": "mobilellm", "share_embedding": True, "tie_word_embeddings": False}
    new.pop("transformers_version", None)
    text = json.dumps({"old": config, "new": new}, indent=1, sort_keys=True)
    (REFERENCE / f"{variant}.json").write_text(text + "\n")
    print(f"{variant}: logits {tuple(logits.shape)} up to {logits.abs().max():.2f}")


def make_smollm2(file: Path) -> None:
    """Writes logits of SmolLM2-135M, dequantized by transformers itself."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    tokens = torch.tensor([tokenizer(SMOLLM2_TEXT)["input_ids"]])
    with torch.no_grad():
        logits = model(tokens).logits[0].numpy()
    np.savez_compressed(
        REFERENCE / "smollm2_135m.npz",
        text=np.frombuffer(SMOLLM2_TEXT.encode(), np.uint8),
        tokens=tokens.numpy().astype(np.int32),
        stride=np.int32(SMOLLM2_STRIDE),
        logits=logits[:, ::SMOLLM2_STRIDE].copy(),
        last_logits=logits[-1],
    )
    print(f"smollm2_135m: {tokens.shape[1]} tokens, logits up to {np.abs(logits).max():.2f}")


def check(variant: str, folder: Path) -> None:
    """Loads a saved folder with transformers and compares its logits with those of the variant."""
    reference = np.load(REFERENCE / f"{variant}.npz")
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    unused = {key: value for key, value in report.items() if value}
    with torch.no_grad():
        logits = model.eval()(torch.tensor(reference["tokens"], dtype=torch.int64)).logits.numpy()
    error = np.abs(logits - reference["logits"]).max()
    print(f"{variant}: {model.config.model_type}, largest difference {error:.2e}, loading report {unused or 'clean'}")
    if error > 1e-5 or unused:
        raise SystemExit(1)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make")
    commands.add_parser("smollm2").add_argument("file", type=Path)
    checking = commands.add_parser("check")
    checking.add_argument("variant", choices=sorted(VARIANTS))
    checking.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "make":
        for variant, config in VARIANTS.items():
            make(variant, config)
    elif args.command == "smollm2":
        make_smollm2(args.file)
    else:
        check(args.variant, args.folder)


if __name__ == "__main__":
    main()
