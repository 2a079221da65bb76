"""One bit without training is the end of the shipped model, whichever way it is rounded."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.data import TextTokenizer, open_windows
from lowbit.models import Transformer, pretrained
from lowbit.numerics.quantizers import onebit, paretoq, rtn
from lowbit.train.objectives import nll_function
from lowbit.train.quantization import LINEAR_KERNELS
from lowbit.tree import Rule, fake_quant, init_state

SHIPPED = Path(__file__).parents[2] / "assets" / "quickstart"


@pytest.fixture(scope="module")
def score():
    """Returns score(quantizer or None) -> mean nats/token of the shipped model on eight windows of held-out text."""
    loaded = pretrained.load(str(SHIPPED / "model"))
    tokenizer = TextTokenizer.load(loaded.tokenizer_files, vocab_size=loaded.cfg.vocab_size)
    text = [str(SHIPPED / "text" / "valid.jsonl")]
    windows = open_windows(text, length=64, vocab_size=loaded.cfg.vocab_size, tokenizer=tokenizer)
    params = jax.tree.map(jnp.asarray, loaded.params)
    nll = jax.jit(nll_function(Transformer(loaded.cfg), 1))

    def score(quantizer):
        rules = (Rule(LINEAR_KERNELS, quantizer), Rule(".*", None))
        state = jax.jit(functools.partial(init_state, rules))(params)
        rounded = jax.jit(functools.partial(fake_quant, rules))(params, state)
        return float(np.mean(nll({"params": rounded}, jnp.asarray(windows[:8]))))

    return score


def test_plain_rounding_at_one_bit_collapses_and_at_four_does_not(score):
    plain, uniform = score(None), math.log(4096)
    assert plain < 4.0
    assert score(rtn(4)) < plain + 0.5
    for quantizer in (rtn(1), paretoq(1), onebit()):
        # More than half of what the model knows, uniform minus plain, is gone.
        assert score(quantizer) > (plain + uniform) / 2, quantizer.name
