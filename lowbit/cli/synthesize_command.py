"""The arguments of `synthesize`."""

from lowbit.cli.command import Command, positive, whole
from lowbit.cli.command import argument as _argument
from lowbit.cli.generate_command import KV_CACHES

SYNTHESIZE = Command(
    "synthesize",
    "let a model write the text that it is distilled on",
    "Writes texts that begin with each token of the vocabulary in turn, go on with the likeliest token up to a length "
    "of 3 to 5, and are drawn from there (LLM-QAT). Drops what repeats itself and what is there already, and writes "
    "the rest as tokenize does: data.train reads the folder. All devices of this machine share a batch. The same "
    "command goes on where it was killed, to the same bytes.",
    (
        "synthesize HuggingFaceTB/SmolLM2-135M -o tokens/self --tokens 11000000",
        "synthesize runs/float -o tokens/self --tokens 1e6 --length 512 --starts 15000 --top-p 0.95 --seed 1",
    ),
    (
        _argument(
            "source",
            metavar="SOURCE",
            help="model that writes: Hugging Face folder, hub name, .gguf, run or packed file",
        ),
        _argument("-o", "--output", metavar="FOLDER", required=True, help="new folder, or one that was interrupted"),
        _argument(
            "--tokens", metavar="N", type=float, required=True, help="tokens to keep, separators included; 1e7 will do"
        ),
        _argument(
            "--length", metavar="T", type=positive, default=1024, help="tokens of the longest text (default: 1024)"
        ),
        _argument(
            "--starts",
            metavar="N",
            type=positive,
            help="begin with the first N tokens of the vocabulary (default: all)",
        ),
        _argument(
            "--greedy",
            metavar="A-B",
            default="3-5",
            help="lengths up to which texts take the likeliest token, each text the next of them (default: 3-5)",
        ),
        _argument("--temperature", metavar="X", type=float, default=1.0, help="divides the logits (default: 1)"),
        _argument(
            "--top-k",
            metavar="N",
            type=whole,
            default=50,
            help="draw among the N likeliest tokens; 0: all (default: 50)",
        ),
        _argument("--top-p", metavar="P", type=float, help="draw among the fewest tokens of total probability P"),
        _argument("--seed", metavar="N", type=whole, default=0, help="of the draws (default: 0)"),
        _argument("--min-tokens", metavar="N", type=positive, default=32, help="drop shorter texts (default: 32)"),
        _argument(
            "--max-repeated",
            metavar="X",
            type=float,
            default=0.2,
            help="drop a text if more of its 4-grams than this share occurred before in it (default: 0.2; 1: never)",
        ),
        _argument(
            "--max-compression",
            metavar="X",
            type=float,
            default=3.0,
            help="drop a text that zlib makes more than X times smaller (default: 3)",
        ),
        _argument(
            "--near-duplicates",
            metavar="X",
            type=float,
            default=0.8,
            help="drop a text that shares this part of its 5-grams with an earlier one (default: 0.8)",
        ),
        _argument("--batch", metavar="N", type=positive, help="texts side by side (default: 1024; on a CPU 32)"),
        _argument("--dtype", choices=("float32", "bfloat16"), help="of weights (default: bfloat16; on a CPU float32)"),
        _argument(
            "--kv-bits",
            choices=tuple(KV_CACHES),
            help="of keys and values (default: those of --dtype)",
        ),
        _argument(
            "--attention",
            choices=("products", "sums", "kernel"),
            help="how a token attends (default: kernel with bfloat16 on an H100 or alike that takes the model's heads, "
            "else products)",
        ),
        _argument(
            "--separator", metavar="TOKEN", help="token after each text, or its id (default: the tokenizer's eos)"
        ),
        _argument(
            "--shard-tokens", metavar="N", type=positive, default=1 << 22, help="tokens a shard (default: 4194304)"
        ),
    ),
)
