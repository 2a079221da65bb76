"""The float model that the quickstart begins with: a 3 M-parameter Llama, trained from scratch on novels.

Paper: Llama, arXiv 2302.13971: the decoder; the sizes are this repository's.
Command: python -m lowbit train configs/pretrain_quickstart.py --config.run_folder=runs/pretrain
    --config.data.train=train.npy --config.data.valid=valid.npy
Hardware: one H100.
Time: 2 minutes for 400 M tokens, at 3.4 M tokens/s.
Expected: 3.354 nats/token, 1.338 bits/byte, on held-out novels and factbook pages (256 windows of 512 tokens; record in
    experiments/2026-11-22_pretrain_quickstart).
Variants: smoke trains two steps of a tiny model.
"""

from lowbit.config import ConfigDict, base, shrink, variants


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, smoke=False)
    config = base()
    config.run_folder = "runs/pretrain_quickstart"
    config.model.source = ""
    config.model.tokenizer = "assets/quickstart/model"
    config.model.architecture = {
        "vocab_size": 4096,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_layers": 6,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 32,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5,
        "tie_embeddings": True,
        "qkv_bias": False,
        "max_positions": 2048,
        "bos_token_id": 0,
        "eos_token_ids": (0,),
    }
    config.model.remat = "none"  # small enough to keep everything

    config.quant.method = "float"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.schedule.warmup = 0.02

    config.train.tokens = 400_000_000
    config.train.batch_size = 128
    config.train.sequence_length = 512
    config.train.loss_chunks = 4
    config.evaluation.windows = 256
    config.evaluation.every_steps = 500
    return shrink(config) if variant.smoke else config
