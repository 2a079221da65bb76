"""The arguments of `allocate`."""

from lowbit.cli.command import Command, positive, whole
from lowbit.cli.command import argument as _argument

ALLOCATE = Command(
    "allocate",
    "choose the width of each matrix under a budget of bytes",
    "Finds what every matrix of the layers loses at every width, and the widths whose losses add up to the least while "
    "the matrices, as packed, take at most the budget. Prints them, and writes them as JSON with a picture beside it; "
    "`train --allocation` and `quantize --allocation` take the file. Measured by the divergence that gradients "
    "predict, by the error of a matrix's outputs, or by the divergence of a model with one matrix rounded, which is "
    "exact and slow. The same command goes on where it was killed.",
    (
        "allocate assets/quickstart/model --data assets/quickstart/text/train.jsonl --length 256 --widths 2 3 4 "
        "--budget 3.0 -o widths.json",
        "allocate model.gguf --data calibration.txt --widths 1.58 2 3 4 --budget 2.5 --granularity 128 --by hessian "
        "-o widths.json",
        "quantize assets/quickstart/model --method gptq --allocation widths.json --data calibration.txt -o w3.lowbit",
        "train configs/qat_quickstart.py --allocation widths.json --config.run_folder=runs/w3",
    ),
    (
        _argument("source", metavar="SOURCE", help="Hugging Face folder or hub name, .gguf file, or run folder"),
        _argument("--data", metavar="FILE", nargs="+", required=True, help="calibration: texts or .npy tokens"),
        _argument("--widths", metavar="B", nargs="+", required=True, help="to choose from: 1, 1.58, 2 to 8"),
        _argument(
            "--budget",
            metavar="X",
            type=float,
            required=True,
            help="bits/weight of the layers' matrices as packed, their scales included",
        ),
        _argument("-o", "--output", metavar="FILE", required=True, help="JSON to write; FILE.png is its picture"),
        _argument(
            "--by",
            metavar="NAME",
            default="gradient",
            help="what a matrix loses: gradient (default), hessian, kl",
        ),
        _argument(
            "--method", metavar="NAME", default="rtn", help="that rounds when it is tried: rtn (default), gptq, ..."
        ),
        _argument(
            "--grid", metavar="NAME", default="paretoq", help="paretoq (default, which training has), integer, ..."
        ),
        _argument(
            "--granularity", metavar="G", default="channel", help="one scale a channel (default), tensor, or G inputs"
        ),
        _argument("--range", metavar="NAME", help="where scales begin: mse (default where there is a choice), max"),
        _argument(
            "--sequences", metavar="N", type=positive, help="of calibration (default: 256 by gradient, otherwise 64)"
        ),
        _argument("--length", metavar="T", type=positive, default=512, help="tokens in each (default: 512)"),
        _argument("--losses", metavar="FILE", help="take the losses of an allocation before, for another budget"),
        _argument("--seed", metavar="N", type=whole, default=0, help="of the sequences drawn (default: 0)"),
        _argument("--overwrite", action="store_true", help="replace an existing output"),
    ),
)
