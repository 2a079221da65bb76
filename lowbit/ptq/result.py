"""A quantized model put together: for evaluation, as a packed file, and as a run that training goes on from."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowbit.config import ConfigDict
from lowbit.errors import QuantizerError
from lowbit.llama import LlamaConfig
from lowbit.models.pretrained import Pretrained
from lowbit.numerics.quantizers import Quantizer, State, stored_as
from lowbit.ptq.layers import QuantizedLayer
from lowbit.ptq.model import KERNELS
from lowbit.ptq.target import Target
from lowbit.train.checkpoints import Progress, opened
from lowbit.train.quantization import quantization_rules
from lowbit.train.run_folder import RunFolder
from lowbit.train.state import TrainState
from lowbit.tree import Rule, bits_report, fake_quant, flatten, unflatten

FLOAT_DTYPE = jnp.float16
"""What embedding, head, norms and biases are stored as."""


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """Everything that a method made of a model.

    Attributes:
      cfg: the model's sizes.
      params: float32 masters, layers stacked, numpy.
      rules: which parameter has which quantizer. A kernel that no quantizer holds has its rounded values as masters.
      state: {"quant", "grid"}, as `lowbit.tree.fake_quant` takes it.
      bits: bits/weight of the quantized matrices, scales and tables included.
      model_bits: the same of all parameters.
      errors: relative error of each kernel, by path, one a layer.
      packable: whether a packed file holds all kernels as codes.
    """

    cfg: LlamaConfig
    params: dict[str, Any]
    rules: tuple[Rule[Any], ...]
    state: dict[str, Any]
    bits: float
    model_bits: float
    errors: dict[str, list[float]]
    packable: bool

    def decoded(self) -> dict[str, Any]:
        """Returns the parameters that the model computes with."""
        quantized = functools.partial(fake_quant, self.rules)
        alike = all(rule.value.at_layer is None for rule in self.rules)
        # Levels of their own in every matrix would make a program as long as the model.
        return (jax.jit(quantized) if alike else quantized)(self.params, self.state)


def assemble(source: Pretrained, layers: Sequence[QuantizedLayer], target: Target) -> QuantizedModel:
    """Returns the model whose layers are `layers`; what lies outside of them is the source's."""
    stacked = {f"layers/{path}": np.stack([layer.leaves[path] for layer in layers]) for path in layers[0].leaves}
    others = {path: leaf for path, leaf in flatten(source.params).items() if not path.startswith("layers/")}
    rules: list[Rule[Any]] = []
    quant: dict[str, Any] = {}
    for path in KERNELS:
        kernels = [layer.kernels[path] for layer in layers]
        quantizers = [kernel.quantizer(target) for kernel in kernels]
        own = [quantizer for quantizer in quantizers if quantizer is not None]
        if not own:
            continue
        rules.append(Rule(re.escape(f"layers/{path}"), own[0] if kernels[0].levels is None else _layered(own)))
        for key in kernels[0].state:
            quant[f"layers/{path}/{key}"] = jnp.asarray(np.stack([kernel.state[key] for kernel in kernels]))
    rules.append(Rule(".*", stored_as(FLOAT_DTYPE)))
    params = unflatten({**others, **stacked})
    bits, model_bits = _bits(rules, params, layers)
    return QuantizedModel(
        cfg=source.cfg,
        params=params,
        rules=tuple(rules),
        state={"quant": unflatten(quant), "grid": {}},
        bits=bits,
        model_bits=model_bits,
        errors={path: [layer.kernels[path].error for layer in layers] for path in KERNELS},
        packable=len(rules) > 1,
    )


def _layered(quantizers: Sequence[Quantizer]) -> Quantizer:
    """One quantizer for `[L k n]` whose layers have levels of their own."""

    def init(w: jax.Array) -> State:
        states = [quantizer.init(w[i]) for i, quantizer in enumerate(quantizers)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def fake(w: jax.Array, state: State) -> jax.Array:
        return jnp.stack(
            [q.fake(w[i], {key: leaf[i] for key, leaf in state.items()}) for i, q in enumerate(quantizers)]
        )

    def encode(w: jax.Array, state: State) -> jax.Array:
        raise QuantizerError("layers with levels of their own have no common grid", "encode layer by layer")

    first = quantizers[0]
    return Quantizer("own_levels", None, init, encode, fake, first.granularity, at_layer=lambda i: quantizers[i])


def _bits(
    rules: Sequence[Rule[Any]], params: Mapping[str, Any], layers: Sequence[QuantizedLayer]
) -> tuple[float, float]:
    """Bits per weight of the quantized matrices and of the model."""
    report = bits_report(rules, params)
    stated = {f"layers/{path}": [layer.kernels[path].bits for layer in layers] for path in KERNELS}
    total = quantized = matrices = 0.0
    for row in report.parameters:
        own = [bits for bits in stated.get(row.path, []) if bits is not None]
        bits = row.weights * (sum(own) / len(own) if own else row.bits_per_weight)
        total += bits
        if row.path in stated:
            quantized, matrices = quantized + bits, matrices + row.weights
    return quantized / matrices, total / sum(row.weights for row in report.parameters)


def write_run(model: QuantizedModel, folder: Path, config: ConfigDict, tokenizer_files: Mapping[str, bytes]) -> None:
    """Writes a run folder whose one checkpoint, of step 0, is the quantized model.

    Whatever takes a run takes it: eval, export, verify, and as `model.source` another run, which then begins with these
    masters, and with `model.source_scales` with these scales.

    Args:
      model: from `assemble`.
      folder: to write; it must not exist.
      config: of the run; its section `quant` names the grid of the model.
      tokenizer_files: by name.

    Raises:
      RunFolderError: the folder cannot be written.
      DiskFullError: there is no room.
    """
    named = {rule.value.name for rule in quantization_rules(config.quant)}
    made = {rule.value.name for rule in model.rules}
    assert named == made, (named, made)
    run = RunFolder(folder)
    run.check(resume=False)
    run.create(config, model.cfg, tokenizer_files)
    variables = jax.device_put({"params": model.params, "quant": model.state["quant"]}, jax.local_devices()[0])
    state = TrainState.create(variables, {"grid": {}}, optax.identity())
    with opened(run.checkpoints) as checkpoints:
        checkpoints.save(state, Progress(0, 0, 0.0, ""), config)
        checkpoints.wait()
