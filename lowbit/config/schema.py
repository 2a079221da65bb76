"""Every setting there is, and what follows from settings alone."""

from ml_collections import ConfigDict, config_dict

from lowbit.errors import ConfigError

ELEMENTS: dict[str, type] = {
    "model.architecture.eos_token_ids": int,
    "data.train": str,
    "data.valid": str,
    "quant.layer_bits": float,
    "quant.overrides": tuple,
    "adapters.overrides": tuple,
    "activations.overrides": tuple,
    "optimizer.frozen": str,
}
"""What the tuples of a config hold."""


def base() -> ConfigDict:
    """Returns every setting there is, at its usual value; the comments are the reference.

    A key that is added gets a line in `records.ADDED`, or the runs recorded without it can be read no longer.
    """
    config = ConfigDict(
        {
            "seed": 0,  # below 2**31; of the order of windows, and of the start of a model made from scratch
            "run_folder": "",  # everything a run writes; it must not exist yet
            "model": {
                # Hugging Face folder or hub name, .gguf file, or run folder (the float masters of its newest
                # checkpoint); "" starts `architecture` from scratch
                "source": "",
                # Whether the residual stream of the source is turned by a random orthogonal matrix: no logit changes; a
                # tied model gets a head of its own by it
                "rotate": False,
                # Whether scales begin as the source, a run of the same grid, left them, not at quant.scale_init
                "source_scales": False,
                # OneBit: a LayerNorm without weights behind every linear layer of the blocks; the teacher has none
                "linear_norm": False,
                "tokenizer": "",  # folder with tokenizer.json; "" takes the source's own
                "compute_dtype": "bfloat16",  # of matrix products; masters are float32 always
                "remat": "dots",  # what is recomputed: "none", "dots" (not matmuls and cuDNN attention), "full"
                "attention": "auto",  # "auto", "xla", "cudnn"
                "architecture": {  # read only where `source` is ""
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
                },
            },
            "data": {
                "train": (),  # .npy token files and folders that `tokenize` wrote, or texts for the model's tokenizer
                "valid": (),  # the same, each evaluated on its own
                "attend_across_documents": True,  # False: tokens see their own document alone, positions restart in it
                # token between documents, or its id; "" takes what token folders say, or the tokenizer's eos token
                "separator": config_dict.FieldReference("", field_type=object),
            },
            "coreset": {  # training on a part of the windows, chosen anew as the model learns
                "share": 1.0,  # of data.train's windows; 1 reads all
                # How far the model is from the token that came: "error"; from the teacher: "disagreement"; "mixed" goes
                # from the first to the second along a cosine; "random" is their control
                "score": "mixed",
                "every_steps": 0,  # steps after which windows are chosen anew; 0: when all that are chosen were read
            },
            "quant": {
                "method": "paretoq",  # "paretoq", "rtn", "llmqat", "absmean_ternary", "onebit", "nf4", "float"
                "bits": 2.0,  # 1, 1.58, 2, 3 or 4, and rtn and llmqat up to 8; read by methods that come in widths
                "layer_bits": (),  # paretoq: a width a layer, in place of bits; one compiled step serves every choice
                "granularity": config_dict.FieldReference("channel", field_type=object),  # "tensor", or a group size
                "symmetric": True,  # rtn: False is the min-max grid with a zero point
                "variant": "fixed",  # llmqat: "reference" is the reference code, zero gradients at |w| >= 2 included
                "estimator": "clipped",  # paretoq: of the gradient to weights: "clipped", "identity", "dsq"
                # paretoq and symmetric rtn: "mse", "mean", "max", "reference"; onebit: "mse", "svd", "nmf", "mean"
                "scale_init": "mse",
                # paretoq and rtn: "fixed" keeps the codes of the start, by frozen masters: of the kernels scales alone
                # learn, and zero points where there are any
                "codes": "moving",
                "latent": 0.0,  # onebit: magnitude that all masters start at, with their signs; 0 leaves them
                "scale_dtype": "float16",  # as stored in the packed file
                "double_quant": False,  # scales as codes of 8 bits with scales of their own (QLoRA); not for onebit
                "float_dtype": "float16",  # stored dtype of what is not quantized
                "overrides": (),  # (path pattern, {key of quant: value}), before the table's own; the first match wins
            },
            "adapters": {  # factors of low rank that learn beside codes and scales that stay, in the layers' kernels
                "rank": 0,  # of the factors; 0 for none
                "alpha": 16.0,  # their product counts alpha / rank times
                "start": "zero",  # "zero" is QLoRA's; "loftq" begins with what rounding loses
                "rounds": 5,  # loftq: how often weights are rounded and what is lost is taken apart
                # (path pattern, {key from rank to rounds: value}), before what is said above; the first match wins
                "overrides": (),
            },
            "activations": {
                "bits": 16,  # of the inputs of the layers' linear layers: 2 to 8, or 16 to leave them as they are
                "symmetric": True,  # False: min-max, with a whole zero point
                "granularity": "token",  # a scale for each "token"; "tensor" or "channel" where the range is static
                "range": "dynamic",  # of the numbers themselves, or "static": found before the first step
                "calibration": 32,  # static: windows of the training data on which the float model's ranges are found
                "variant": "fixed",  # dynamic: "reference" is LLM-QAT's code, zero gradients at |x| >= 2 included
                # (path pattern, {key from bits to variant: value}), of paths such as "layers/mlp/down_proj", before
                # what is said above; the first match wins
                "overrides": (),
                "kv_bits": 16,  # of keys and values, as the cache holds them: 4, 8, or 16 to leave them as they are
                "kv_symmetric": True,
                "kv_per_head": True,  # False: one scale for all heads of a token, as LLM-QAT has it
                "kv_rotated": True,  # keys are rounded as their positions turned them; False: before, as LLM-QAT has it
            },
            "distill": {
                "weight": 0.0,  # share of the divergence from a teacher in the loss, 0 to 1; 0 needs no teacher
                "temperature": 1.0,  # of both distributions in the divergence
                "divergence": "forward",  # KL(teacher || student); "reverse", "confidence" (CAKLD: between the two)
                "hidden_weight": 0.0,  # of the distance between normed hidden states, summed over the layers
                "attention_weight": 0.0,  # of the divergence between relations of queries, of keys and of values
                "attention_layer": -1,  # the layer whose relations these are
                # As model.source, but a run folder teaches what it predicts; "" is the float model that the run, or the
                # chain of runs behind its source, started from
                "teacher": "",
                "dtype": "bfloat16",  # of the teacher's parameters in memory
                "cache": "",  # folder that `cache-teacher` wrote, to read in place of running the teacher
            },
            "optimizer": {
                "name": "adamw",  # "adamw", or "muon" for the layers' kernels and AdamW for everything else
                "learning_rate": 1e-3,  # the peak
                "b1": 0.9,  # AdamW
                "b2": 0.95,
                "eps": 1e-8,
                "momentum": 0.95,  # Muon
                "weight_decay": 0.0,  # of matrices and embedding
                "scale_learning_rate": 1.0,  # factor on the learning rate, for quantizer scales
                "scale_schedule": "same",  # their shape: "same" as schedule.shape, or "cosine", "linear", "constant"
                "scale_until": 1.0,  # share of the steps after which they stand still
                # Factor on the learning rate, for embedding, head, norms and biases
                "float_learning_rate": 1.0,
                "clip_norm": 1.0,  # global L2 norm of the gradient; inf clips nothing
                # Share of the output channels of the layers' kernels that learn, of largest mean |w|; 1: all (EfQAT)
                "channel_share": 1.0,
                "channel_choice": "matrix",  # the share is of each "matrix", of the "network", or whole ones: "layer"
                "channel_every_steps": 100,  # steps after which channels are chosen anew
                "frozen": (),  # patterns of paths like "params/embed/.*" that stay as they start
            },
            "schedule": {"shape": "cosine", "warmup": 0.05, "final": 0.0},  # shares of the steps, and of the peak
            "train": {
                "tokens": 10_000_000,  # steps = tokens // (batch_size * sequence_length)
                "batch_size": 32,  # sequences a step, over all devices
                "sequence_length": 1024,  # inputs; a window holds one token more
                "accumulate": 1,  # parts that a batch is visited in
                "loss_chunks": 8,  # pieces of a sequence whose logits are in memory at once
            },
            "evaluation": {
                "every_steps": 0,  # 0: at the end alone
                "windows": 128,  # the first so many windows of each file; 0 for all
                "batch_size": 32,
            },
            "checkpoint": {
                "every_steps": 0,  # 0: by time alone
                "every_minutes": 10.0,  # inf: by steps alone
                "keep": 2,
            },
            "log": {
                "every_steps": 10,
                "progress": True,
                "tensorboard": False,
                "recorder_every_steps": 50,  # statistics of codes and scales, and after the last step; 0: never
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # devices along each axis; -1 takes what is left
        }
    )
    return config.lock()


def shrink(config: ConfigDict) -> ConfigDict:
    """Returns the config cut down to two steps of a tiny model from scratch: what the variant `smoke` means.

    Data, quantization, optimizer and schedule stay, as does the vocabulary, so that the run's own token files fit.
    There is neither a teacher nor a rotation: both need a model to start from.
    """
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "head_dim": 8}
    config.model.architecture.update({**sizes, "num_heads": 4, "num_kv_heads": 2, "max_positions": 64})
    config.model.source = ""
    config.model.rotate = False
    config.model.source_scales = False
    config.distill.update({"weight": 0.0, "hidden_weight": 0.0, "attention_weight": 0.0, "cache": ""})
    config.coreset.update({"share": 1.0, "score": "mixed", "every_steps": 0})
    config.train.update({"tokens": 512, "batch_size": 8, "sequence_length": 32, "accumulate": 1, "loss_chunks": 2})
    config.evaluation.update({"every_steps": 0, "windows": 8, "batch_size": 8})
    config.log.every_steps = 1
    config.log.recorder_every_steps = 0  # compiling it takes longer than the steps
    return config


def steps(config: ConfigDict) -> int:
    """Returns how many optimizer steps `train.tokens` make; raises ConfigError where it is none."""
    per_step = config.train.batch_size * config.train.sequence_length
    if config.train.tokens < per_step:
        raise ConfigError(
            f"train.tokens={config.train.tokens} is less than one step of {per_step} tokens",
            "raise train.tokens, or lower train.batch_size or train.sequence_length",
        )
    return int(config.train.tokens // per_step)
