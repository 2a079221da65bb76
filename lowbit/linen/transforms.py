"""quantize: a Flax module whose parameters pass through quantizers before it sees them."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from lowbit.tree import paths
from lowbit.tree.apply import COLLECTIONS, QuantizerRule, state_at
from lowbit.tree.rules import lookup


def quantize(module_cls: type[nn.Module], rules: Sequence[QuantizerRule], prefix: str = "") -> type[nn.Module]:
    """Returns a module class that computes with fake-quantized parameters; masters stay as they are.

    The result is for `apply` alone: initialise the plain class (its `init` would store quantized masters), and make the
    quantizers' state with `tree.init_state`, which also checks the rules against the whole model. Placed inside
    `nn.scan` and `nn.remat` it keeps one layer's quantized weights alive at a time and recomputes them in the backward
    pass; its results equal those of `tree.fake_quant` on the whole tree bit for bit.

    Example:
      >>> stacked = {"params": 0, "quant": 0, "grid": 0}
      >>> Layers = nn.scan(nn.remat(quantize(Block, rules, "layers")), variable_axes=stacked, length=L)

    Args:
      module_cls: any Flax module class.
      rules: patterns match full paths, such as `layers/attn/q_proj/kernel`.
      prefix: where the module's parameters stand in the whole tree; put before each path.

    Raises:
      RuleError: at trace time, a parameter that no rule covers.
    """

    def transform(variables: Mapping[str, Any]) -> dict[str, Any]:
        quantized = {}
        for path, w in paths.flatten(variables.get("params", {})).items():
            quantizer = lookup(rules, f"{prefix}/{path}" if prefix else path)
            if quantizer is not None:
                with jax.named_scope("fake_quant"):  # a name in profiles
                    w = quantizer.fake(w, quantizer.state_of(w, state_at(variables, path)))
            quantized[path] = w
        # "grid" goes on, for what else may stand in it beside the quantizers' own: ranges of activations.
        return {"params": paths.unflatten(quantized), "grid": variables.get("grid", {})}

    return nn.map_variables(module_cls, ("params", *COLLECTIONS), trans_in_fn=transform, mutable=False)
