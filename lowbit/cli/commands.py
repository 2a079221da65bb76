"""The commands and their arguments, as data: parsers, `--help` and docs/commands.md are all made of it."""

from lowbit.cli.allocate_command import ALLOCATE
from lowbit.cli.bench_command import BENCH
from lowbit.cli.command import Command, positive, whole
from lowbit.cli.command import argument as _argument
from lowbit.cli.generate_command import GENERATE, NO_VERIFY
from lowbit.cli.quantize_command import QUANTIZE
from lowbit.cli.synthesize_command import SYNTHESIZE

PROGRAM = "python -m lowbit"

_PACKED = _argument("packed", metavar="PACKED", help="packed file that export wrote")

_ROUNDING = (
    _argument(
        "--method", metavar="NAME", help="round a pretrained SOURCE: rtn, llmqat, absmean_ternary, paretoq, nf4, float"
    ),
    _argument("--bits", metavar="B", help="its width: 1, 1.58, 2, 3, 4 (or what the method allows)"),
    _argument("--granularity", metavar="G", help="one scale a channel (default), tensor, or G inputs"),
    _argument("--scale-init", metavar="NAME", help="how paretoq and rtn choose scales: mse (default), max, mean, ..."),
    _argument("--activations", metavar="NAME", help="also round what kernels read, by token: int8-dynamic, int4-..."),
    _argument("--kv-bits", metavar="B", help="also round keys and values: 8, 4, 8-minmax, 4-minmax"),
)

_DISTRIBUTED = (
    _argument(
        "--distributed",
        action="store_true",
        help="one of several processes of a run; SLURM, Open MPI, GKE or the TPU pod says which",
    ),
    _argument(
        "--coordinator", metavar="HOST:PORT", help="the same without a cluster: where the process of index 0 is reached"
    ),
    _argument("--processes", metavar="N", type=positive, help="how many processes; with --coordinator"),
    _argument("--process-index", metavar="I", type=whole, help="which of them this is, from 0; with --coordinator"),
)

_CONFIG = _argument(
    "config", metavar="CONFIG[:VARIANTS]", help="Python file with get_config, and variants of it: x.py:bits=2"
)

_OVERRIDES = _argument(
    "--config",
    dest="overrides",
    metavar="KEY=VALUE",
    action="append",
    default=[],
    help="set a key of the config; --config.KEY=VALUE is the same; repeatable",
)

TRAIN = Command(
    "train",
    "fine-tune a model with its quantizers in the forward pass",
    "Trains what a config file describes and writes checkpoints, metrics and results into its run folder. A run that "
    "was killed goes on with --resume, to the same losses. Every key of a config can be set from here.",
    (
        "train configs/qat_quickstart.py:bits=2 --config.run_folder=runs/w2",
        "train configs/qat_quickstart.py:bits=2 --config.run_folder=runs/w2 --resume",
        "train configs/qat_smollm2.py:bits=1.58,smoke --config.optimizer.learning_rate=1e-3",
    ),
    (
        _CONFIG,
        _OVERRIDES,
        _argument("--allocation", metavar="FILE", help="widths of each matrix that allocate wrote"),
        _argument("--resume", action="store_true", help="go on from the newest checkpoint of the run folder"),
        *_DISTRIBUTED,
    ),
)

CACHE_TEACHER = Command(
    "cache-teacher",
    "keep what a teacher says of a run's text, to train from it without the teacher",
    "Runs the teacher of a config over every window that the config's run reads, and keeps the K likeliest tokens of "
    "each position with the probability of all others together. Prints bytes a token and what the truncation takes "
    "away. The same command goes on where it was killed. `train` reads the folder at distill.cache.",
    (
        "cache-teacher configs/qat_smollm2.py:bits=2,recipe=logits -o caches/smollm2 --config.data.train=train.npy",
        "train configs/qat_smollm2.py:bits=2,recipe=logits --config.data.train=train.npy "
        "--config.distill.cache=caches/smollm2",
    ),
    (
        _CONFIG,
        _OVERRIDES,
        _argument("-o", "--output", metavar="FOLDER", required=True, help="new folder, or one that was interrupted"),
        _argument("--k", metavar="K", type=positive, default=32, help="tokens kept at each position (default: 32)"),
        _argument("--windows-per-shard", metavar="N", type=positive, default=256, help="windows a file (default: 256)"),
    ),
)

SWEEP = Command(
    "sweep",
    "train many variants of one config, and draw what they came to",
    "Trains every point of a sweep file: a base config and the settings in which its points differ, such as widths, "
    "learning rates and seeds. All points are checked before the first is trained. Points that share a shape share a "
    "compiled program, and on an accelerator are trained side by side. Writes sweep.json, and from it a table, "
    "figures and report.html. A sweep that was killed goes on with --resume; finished points are skipped.",
    (
        "sweep configs/sweeps/quickstart.py -o runs/sweep_quickstart",
        "sweep configs/sweeps/quickstart.py -o runs/sweep_quickstart --resume",
        "sweep configs/sweeps/quickstart.py --dry-run --config.train.tokens=50000",
    ),
    (
        _argument("sweep", metavar="SWEEP", help="Python file with get_sweep"),
        _argument("-o", "--output", metavar="FOLDER", help="folder of the sweep (default: runs/sweep_NAME)"),
        _argument(
            "--config",
            dest="overrides",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="set a key of the config for all points; --config.KEY=VALUE is the same; repeatable",
        ),
        _argument("--resume", action="store_true", help="go on with the sweep in the folder; it may have more points"),
        _argument("--dry-run", action="store_true", help="check all points and list them; train and write nothing"),
        _argument(
            "--points-at-once",
            metavar="N",
            type=whole,
            help="points side by side in one program; 1: one after another; 0: each a run with checkpoints "
            "(default: the file's, or 1 on a CPU and 8 elsewhere)",
        ),
    ),
)

ESTIMATE = Command(
    "estimate",
    "say what a run will cost before it is launched",
    "Prints parameters, bytes a device, FLOPs, tokens/s, hours and sizes of files, for a config on devices that need "
    "not be here. Reads the sizes of the model and nothing else: neither weights nor data. Speed comes from the "
    "nearest measurement in docs/results, or from --share or --tokens-per-s. Exit status 1: it does not fit.",
    (
        "estimate configs/qat_smollm2.py:bits=2 --device h100",
        "estimate configs/qat_smollm2.py:bits=2 --device tpu-v5e --mesh 4,4,1 --share 0.3",
    ),
    (
        _CONFIG,
        _OVERRIDES,
        _argument(
            "--devices", metavar="N", type=positive, help="how many; axes of the config that are -1 take the rest"
        ),
        _argument("--mesh", metavar="D,F,T", help="devices along data, fsdp and tensor, in place of the config's"),
        _argument("--device", metavar="NAME", default="h100", help="h100 (default), h200, b200, a100, tpu-v5e, ..."),
        _argument("--share", metavar="X", type=float, help="of the device's peak that training reaches, 0 to 1"),
        _argument("--tokens-per-s", metavar="X", type=float, help="over all devices, where it is known"),
        _argument("--results", metavar="FOLDER", help="of train_throughput*.json (default: docs/results)"),
        _argument("--compile", action="store_true", help="also compile the step for devices of this machine"),
        _argument("--json", action="store_true", help="print JSON"),
    ),
)

EVAL = Command(
    "eval",
    "measure how well a model predicts text and answers questions",
    "Prints nats/token with its standard error over windows, perplexity, bits/byte and the number of predicted tokens, "
    "for each text by itself, and accuracies of zero-shot tasks. SOURCE is a run folder, a packed file, or a float "
    "model: a Hugging Face folder, a hub name or a .gguf file, which --method rounds on the fly. --against another "
    "model adds divergence, agreement and paired tests. Sums and logits are in float32.",
    (
        "eval runs/w2 --data assets/quickstart/text/valid.jsonl --windows 32 --length 256",
        "eval w2.lowbit --data valid.npy --backend numpy",
        "eval HuggingFaceTB/SmolLM2-135M --method rtn --bits 4 --data valid.txt -o rtn4.json",
        "eval w2.lowbit --against model.gguf --data wiki.test.raw --protocol papers --tasks piqa=piqa.jsonl",
    ),
    (
        _argument(
            "source", metavar="SOURCE", help="run folder, packed file, Hugging Face folder or hub name, or .gguf file"
        ),
        _argument(
            "--data",
            metavar="FILE",
            nargs="+",
            default=[],
            help="texts (.txt .md .jsonl .parquet, also .gz .bz2), .npy tokens, or folders that tokenize wrote",
        ),
        _argument(
            "--tasks",
            metavar="NAME=FILE",
            nargs="+",
            default=[],
            help="zero-shot tasks and their JSONL: arc_easy, arc_challenge, boolq, piqa, social_iqa, hellaswag, "
            "openbookqa, winogrande, lambada_openai",
        ),
        _argument("--items", metavar="N", type=positive, help="only the first N items of each task (default: all)"),
        _argument("--against", metavar="SOURCE", help="another model to compare with, such as the float one"),
        _argument("--windows", metavar="N", type=positive, help="only the first N windows of each text (default: all)"),
        _argument(
            "--length",
            metavar="T",
            type=positive,
            help="predictions a window (default: the model's positions, up to 1024)",
        ),
        _argument("--stride", metavar="N", type=positive, help="let windows overlap: N new predictions in each"),
        _argument(
            "--protocol",
            choices=("papers",),
            help="WikiText-2 as papers cut it: windows of --length tokens (default: 2048) that share none",
        ),
        _argument("--batch", metavar="N", type=positive, default=8, help="windows or choices at a time (default: 8)"),
        _argument(
            "--within-documents",
            action="store_true",
            help="let tokens see their own document alone (jax backend)",
        ),
        _argument(
            "--backend",
            choices=("jax", "numpy", "integer"),
            help="for a packed file: numpy runtime, its decoded weights in jax (default: jax if installed), or in jax "
            "integers alone in linear layers, where their inputs are rounded",
        ),
        NO_VERIFY,
        *_ROUNDING,
        _argument("-o", "--output", metavar="FILE", help="also write the results as JSON"),
        _argument("--overwrite", action="store_true", help="replace an existing output"),
    ),
)

EXPORT = Command(
    "export",
    "write a packed file that runs without jax, or a model for other engines",
    "Packs the newest checkpoint of a run, or a pretrained model rounded by --method, with its tokenizer and a record "
    "of what it was made from. Prints bits per weight of the quantized matrices, of the whole model and of the file. "
    "The file appears whole or not at all; one source and one commit of the code give equal bytes. --to gguf writes "
    "for llama.cpp, each tensor in the smallest type that holds its codes, --to hf a folder for transformers. Both "
    "also take a packed file, and a GGUF file that export wrote becomes the packed file again.",
    (
        "export runs/w2 -o w2.lowbit",
        "export runs/w2 --to gguf -o w2.gguf",
        "export model.gguf --method rtn --bits 4 --granularity 64 -o rtn4.lowbit",
    ),
    (
        _argument("source", metavar="SOURCE", help="run folder, Hugging Face folder or hub name, .gguf or packed file"),
        _argument("-o", "--output", metavar="FILE", required=True, help="file to write; with --to hf, a folder"),
        _argument("--to", choices=("packed", "gguf", "hf"), default="packed", help="what to write (default: packed)"),
        _argument(
            "--avoid",
            metavar="TYPE",
            nargs="+",
            default=(),
            help="GGUF types not to use: Q1_0 Q2_0 for older engines, TQ1_0 to have the faster TQ2_0",
        ),
        _argument("--pre", metavar="NAME", help="llama.cpp's name for how the tokenizer cuts words (default: found)"),
        *_ROUNDING,
        _argument("--overwrite", action="store_true", help="replace an existing output"),
    ),
)

VERIFY = Command(
    "verify",
    "prove that a packed file is the model it was made from",
    "Checks every checksum, compares all weights bit for bit with the trained (fake-quantized) ones, and the logits of "
    "the numpy runtime with those of the Flax model, within what float32 rounding explains. A run that went on after "
    "the export is read at the step of the file, as long as it keeps that checkpoint. Exit status: 0 for the same "
    "model, 1 for another, 2 for an error such as a damaged file.",
    ("verify w2.lowbit", "verify w2.lowbit --against runs/w2 --text 'It was a dark night.'"),
    (
        _PACKED,
        _argument(
            "--against", metavar="SOURCE", help="run folder or pretrained source (default: the one that the file names)"
        ),
        _argument(
            "--tokens", metavar="N", type=positive, default=64, help="compare logits at N random tokens (default: 64)"
        ),
        _argument("--seed", metavar="N", type=whole, default=0, help="of the random tokens (default: 0)"),
        _argument("--text", metavar="TEXT", help="compare logits at the tokens of this text instead"),
    ),
)

INSPECT = Command(
    "inspect",
    "show what a packed file holds, or a folder of tokens",
    "Lists tensors with grid, shape, bits per weight and bytes, then the grids, the config, what the file was made "
    "from, and bits per weight three ways. Reads the header alone, unless --checksums is given. Of a folder that "
    "tokenize wrote it lists shards, sources and counts.",
    ("inspect w2.lowbit", "inspect w2.lowbit --json --checksums", "inspect tokens/train --checksums"),
    (
        _argument("packed", metavar="PACKED", help="packed file that export wrote, or a folder that tokenize did"),
        _argument("--checksums", action="store_true", help="also read every byte and compare it with its checksum"),
        _argument("--json", action="store_true", help="print JSON"),
    ),
)

TOKENIZE = Command(
    "tokenize",
    "turn text into the token shards that training reads",
    "Encodes every document by itself, puts the separator after it, and writes the stream as .npy shards with a "
    "manifest of hashes and counts. The same command goes on where it was killed, to the same bytes. A SOURCE is a "
    "text file (.txt .md .raw, or rows of .jsonl, also .gz .bz2, or .parquet), a folder of them, or a data set of the "
    "Hugging Face hub.",
    (
        "tokenize texts/ --tokenizer HuggingFaceTB/SmolLM2-135M -o tokens --valid-share 0.01",
        "tokenize rows.parquet --field content --tokenizer model.gguf -o tokens",
        "tokenize HuggingFaceFW/fineweb-edu --subset sample-10BT --tokenizer runs/w2 -o tokens",
    ),
    (
        _argument(
            "sources", metavar="SOURCE", nargs="+", help="text files, folders of them, or data sets like OWNER/NAME"
        ),
        _argument(
            "--tokenizer",
            metavar="MODEL",
            required=True,
            help="folder, hub name, .gguf file, tokenizer.json, run or packed file",
        ),
        _argument("-o", "--output", metavar="FOLDER", required=True, help="new folder, or one that was interrupted"),
        _argument("--field", metavar="NAME", default="text", help="where a row has its text (default: text)"),
        _argument(
            "--valid-share",
            metavar="X",
            type=float,
            default=0.0,
            help="share of documents, by their hash, that goes to FOLDER/valid, and the rest to FOLDER/train",
        ),
        _argument(
            "--shard-tokens",
            metavar="N",
            type=positive,
            default=1 << 26,
            help="tokens a shard (default: 67108864, 128 MiB)",
        ),
        _argument(
            "--separator", metavar="TOKEN", help="token after each document, or its id (default: the tokenizer's eos)"
        ),
        _argument("--subset", metavar="NAME", help="of a data set that has several"),
        _argument("--split", metavar="NAME", help="of a data set (default: train)"),
        _argument("--revision", metavar="REV", help="branch, tag or commit of a data set (default: the newest)"),
    ),
)

REPORT = Command(
    "report",
    "draw the page of a training run",
    "Writes one HTML file that opens without a network: loss, evaluations, and what the flight recorder saw of codes, "
    "weights and scales, layer by layer. Works while the run goes on, and does without jax.",
    ("report runs/w2", "report runs/w2 -o w2.html --overwrite"),
    (
        _argument("run", metavar="RUN", help="run folder"),
        _argument("-o", "--output", metavar="FILE", help="page to write (default: report.html in the run folder)"),
        _argument("--overwrite", action="store_true", help="replace an existing output"),
    ),
)

COMMANDS: dict[str, Command] = {
    c.name: c
    for c in (
        *(TOKENIZE, SYNTHESIZE, ESTIMATE, CACHE_TEACHER, ALLOCATE, TRAIN, SWEEP, QUANTIZE),
        *(EVAL, REPORT, EXPORT, VERIFY, INSPECT, GENERATE, BENCH),
    )
}


def overview() -> str:
    """Returns what `python -m lowbit` prints."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"""lowbit: pretrained language models at 1 to 4 bits per weight, and on to something that runs

usage: {PROGRAM} COMMAND ...
       {PROGRAM} COMMAND --help     flags and an example
       {PROGRAM} --version

commands:
{listed}

from a pretrained model to text at 2 bits:
  {PROGRAM} train configs/qat_quickstart.py:bits=2 --config.run_folder=runs/w2
  {PROGRAM} export runs/w2 -o w2.lowbit
  {PROGRAM} verify w2.lowbit
  {PROGRAM} generate w2.lowbit --prompt 'The ship'
"""
