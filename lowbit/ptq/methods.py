"""The table of methods, by the names that the command line takes."""

from collections.abc import Sequence

from lowbit.errors import QuantizerError, nearest
from lowbit.numerics import groups
from lowbit.ptq.block_ap import block_ap_learn, check_block_ap
from lowbit.ptq.clipping import awq_round
from lowbit.ptq.distillation import distilled_round
from lowbit.ptq.folding import awq_fold, check_alpha, smoothquant_fold
from lowbit.ptq.gpfq import gpfq_round
from lowbit.ptq.gptq import check_gptq, gptq_round
from lowbit.ptq.hqq import hqq_round
from lowbit.ptq.kmeans import kmeans_round
from lowbit.ptq.method import Method, Options
from lowbit.ptq.moments import TOKEN_WEIGHTS
from lowbit.ptq.nearest import check_groups, nearest_round
from lowbit.ptq.outliers import check_threshold, outlier_round
from lowbit.ptq.target import Target
from lowbit.ptq.vectors import check_product, check_residual, product_round, residual_round

_EVENLY_SPACED = ("integer", "zero_point", "paretoq")
_ANY_LEVELS = (*_EVENLY_SPACED, "float_zero", "nf4", "power")
_RANGES = ("mse", "max", "percentile")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("rtn", nearest_round, _ANY_LEVELS, _RANGES, reads_moments=False),
        Method(
            "zeroquant", nearest_round, ("integer", "zero_point"), ("max",), reads_moments=False, check=check_groups
        ),
        Method("lkd", distilled_round, ("integer", "zero_point", "paretoq"), ("mse", "max")),
        Method(
            "gptq",
            gptq_round,
            _ANY_LEVELS,
            _RANGES,
            options=("damping", "act_order", "static_groups", "token_weights"),
            check=check_gptq,
        ),
        Method(
            "block_ap",
            nearest_round,
            ("zero_point", "integer", "paretoq"),
            ("mse", "max"),
            learn=block_ap_learn,
            follows_float=True,
            options=("epochs", "batch_size", "weight_rate", "scale_rate", "seed"),
            check=check_block_ap,
        ),
        Method("gpfq", gpfq_round, _ANY_LEVELS, _RANGES, follows_float=True),
        Method("awq", awq_round, ("zero_point", "integer", "paretoq", "nf4", "power"), ("max",), fold=awq_fold),
        Method(
            "smoothquant",
            nearest_round,
            _ANY_LEVELS,
            _RANGES,
            fold=smoothquant_fold,
            reads_moments=False,
            options=("alpha",),
            check=check_alpha,
        ),
        Method("hqq", hqq_round, ("float_zero",), ("max",), reads_moments=False),
        Method("int8_outliers", outlier_round, ("integer",), ("max",), options=("threshold",), check=check_threshold),
        Method("kmeans", kmeans_round, ("free",), ("max",), reads_moments=False),
        Method(
            "product",
            product_round,
            ("vectors",),
            ("max",),
            reads_moments=False,
            options=("seed",),
            check=check_product,
        ),
        Method(
            "residual",
            residual_round,
            ("vectors",),
            ("max",),
            reads_moments=False,
            options=("seed",),
            check=check_residual,
        ),
    )
}
"""rtn with the grids "nf4" and "power" is NF4 and logarithmic quantization; gptq and the others take them too."""


def method_by_name(name: str) -> Method:
    """Returns the named method; raises QuantizerError where there is none."""
    if name not in METHODS:
        raise QuantizerError(f"unknown method {name!r}", nearest(name, METHODS))
    return METHODS[name]


def check(method: Method, target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Refuses what cannot be, before any work.

    Args:
      method: from the table.
      target: grid, width and granularity.
      options: of the method.
      inputs: k of all kernels.

    Raises:
      QuantizerError: a grid, a range or an option that the method has no use for, unknown weights of tokens, scales
        that it cannot have quantized, or a group that does not divide.
    """
    if target.grid not in method.grids:
        raise QuantizerError(
            f"{method.name} cannot round to the grid {target.grid!r}", f"choose from {', '.join(method.grids)}"
        )
    if target.doubled and (method.round is not nearest_round or method.learn is not None):
        plain = [name for name, row in METHODS.items() if row.round is nearest_round and row.learn is None]
        raise QuantizerError(
            f"{method.name} rounds weights with scales that it chooses as it goes, before they could be quantized",
            f"double scales with one of {', '.join(plain)}",
        )
    if target.range not in method.ranges:
        raise QuantizerError(
            f"{method.name} has no choice of the range {target.range!r}", f"choose from {', '.join(method.ranges)}"
        )
    if options.token_weights not in TOKEN_WEIGHTS:
        raise QuantizerError(
            f"unknown weights {options.token_weights!r} of tokens", nearest(options.token_weights, TOKEN_WEIGHTS)
        )
    for k in sorted(set(inputs)):
        groups.check((k, 1), target.granularity)
    method.check(target, options, inputs)
