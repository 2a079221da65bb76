"""The arguments of `quantize`."""

from lowbit.cli.command import Command, positive, whole
from lowbit.cli.command import argument as _argument

QUANTIZE = Command(
    "quantize",
    "take a model to a width without training",
    "Rounds the layers' kernels one layer after another, by a method that may look at calibration data. An OUTPUT that "
    "ends in .lowbit is a packed file; any other name is a run folder, whose masters and scales training can go on "
    "from (model.source, model.source_scales). Writes a record as JSON: settings, seconds, memory, bits per weight, "
    "the error of each kernel. The same command goes on where it was killed.",
    (
        "quantize model.gguf --method gptq --bits 3 --granularity 64 --data calibration.txt -o w3.lowbit",
        "quantize model.gguf --method smoothquant --bits 8 --activations int8-static --data calibration.txt "
        "-o w8a8.lowbit",
        "quantize assets/quickstart/model --method hqq --bits 4 --granularity 64 -o hqq4.lowbit",
        "quantize assets/quickstart/model --method gptq --grid paretoq --bits 2 --granularity channel "
        "--data assets/quickstart/text/train.jsonl --length 256 -o runs/gptq2",
    ),
    (
        _argument("source", metavar="SOURCE", help="Hugging Face folder or hub name, .gguf file, or run folder"),
        _argument(
            "--method",
            metavar="NAME",
            required=True,
            help="rtn, gptq, awq, hqq, gpfq, smoothquant, zeroquant, lkd, block_ap, int8_outliers, kmeans, product, "
            "residual",
        ),
        _argument("--bits", metavar="B", help="width: 1, 1.58, 2 to 8 (or what the grid has)"),
        _argument("--allocation", metavar="FILE", help="in its place: widths of each matrix that allocate wrote"),
        _argument("-o", "--output", metavar="OUTPUT", required=True, help="packed file (.lowbit) or run folder"),
        _argument("--granularity", metavar="G", help="one scale a channel (default), tensor, or G inputs"),
        _argument(
            "--grid",
            metavar="NAME",
            help="integer, zero_point, float_zero, paretoq, nf4, power (default: the method's)",
        ),
        _argument(
            "--double-quant", action="store_true", help="scales as codes of 8 bits with scales of their own (QLoRA)"
        ),
        _argument(
            "--range", metavar="NAME", help="where scales begin: mse (default where there is a choice), max, percentile"
        ),
        _argument(
            "--activations",
            metavar="NAME",
            help="round what kernels read: int8-dynamic, int8-mixed, int8-static",
        ),
        _argument("--kv-bits", metavar="B", help="also round keys and values: 8, 4, 8-minmax, 4-minmax"),
        _argument(
            "--activation-range",
            metavar="NAME",
            help="how static ranges are found: max (default), mse, percentile, moving",
        ),
        _argument("--data", metavar="FILE", nargs="+", default=[], help="calibration: texts or .npy tokens"),
        _argument("--sequences", metavar="N", type=positive, help="of calibration (default: 64)"),
        _argument("--length", metavar="T", type=positive, help="tokens in each (default: 512)"),
        _argument("--seed", metavar="N", type=whole, default=0, help="of the sequences drawn (default: 0)"),
        _argument("--damping", metavar="X", type=float, help="gptq: share of the mean diagonal (default: 0.01)"),
        _argument("--act-order", action="store_true", help="gptq: inputs of largest second moment first"),
        _argument("--static-groups", action="store_true", help="gptq: groups' scales from the weights at the start"),
        _argument(
            "--token-weights",
            metavar="NAME",
            help="gptq: what calibration tokens count: even (default), attention: by what they get of it",
        ),
        _argument("--alpha", metavar="X", type=float, help="smoothquant: share that weights take over (default: 0.5)"),
        _argument("--threshold", metavar="X", type=float, help="int8_outliers: magnitude of an outlier (default: 6)"),
        _argument("--epochs", metavar="N", type=positive, help="block_ap: passes over calibration (default: 10)"),
        _argument("--batch-size", metavar="N", type=positive, help="block_ap: sequences in a step (default: 8)"),
        _argument("--weight-rate", metavar="X", type=float, help="block_ap: Adam's rate for weights (default: 1e-3)"),
        _argument(
            "--scale-rate", metavar="X", type=float, help="block_ap: the same for scales and zeros (default: 1e-3)"
        ),
        _argument("--eval", metavar="FILE", nargs="+", default=[], help="texts on which to compare before and after"),
        _argument("--windows", metavar="N", type=positive, help="only the first N windows of each (default: all)"),
        _argument("--overwrite", action="store_true", help="replace an existing packed file"),
    ),
)
