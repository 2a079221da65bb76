"""What a kernel loses: each measure against its definition, killed and resumed, and what cannot be tried."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import AllocationError, QuantizerError, RunFolderError
from lowbit.evals.compare import compare_logits
from lowbit.llama import LAYER_PREFIX
from lowbit.mixed import FinishedRows, Sensitivities, measure_by_name
from lowbit.mixed.divergence import divergences
from lowbit.mixed.fisher import fisher_losses, projections
from lowbit.mixed.hessian import output_errors
from lowbit.mixed.trial import float_layers
from lowbit.models import Transformer
from lowbit.models.blockwise import apply_block, linear_inputs
from lowbit.ptq import make_target
from lowbit.tree import flatten, unflatten

PATH, LAYER = "mlp/up_proj/kernel", 1


def rounded(source, bits, path=PATH, layer=LAYER):
    """The float kernel of a layer, and what it is rounded to."""
    w = jnp.asarray(flatten(source.load().params)[LAYER_PREFIX + path][layer])
    quantizer = make_target("paretoq", bits, "channel", "max").quantizer
    return w, quantizer.fake(w, quantizer.init(w))


def changed(source, w_hat, path=PATH, layer=LAYER):
    """The parameters with one kernel of one layer in another form."""
    flat = flatten(source.load().params)
    kernel = np.array(flat[LAYER_PREFIX + path])
    kernel[layer] = w_hat
    return unflatten(flat | {LAYER_PREFIX + path: kernel})


@pytest.fixture(scope="module")
def measured(source, make_trial, one_device):
    return {f.__name__: f(source, make_trial(), devices=one_device) for f in (output_errors, divergences)}


def test_every_kernel_has_a_loss_at_every_width_and_more_bits_lose_less(measured, source):
    for found in measured.values():
        assert list(found.losses) == [p.removeprefix(LAYER_PREFIX) for p in kernel_paths(source)]
        for losses in found.losses.values():
            assert losses.shape == (2, 3)
            assert (losses[:, 0] > losses[:, 2]).all()
            assert (losses > 0).all()


def kernel_paths(source):
    order = ("q", "k", "v", "o", "gate", "up", "down")
    paths = [path for path in flatten(source.load().params) if path.endswith("_proj/kernel")]
    return sorted(paths, key=lambda path: order.index(path.split("/")[-2].removesuffix("_proj")))


def test_kl_is_that_of_whole_models(measured, source, make_trial):
    tokens = make_trial().calibration.tokens
    model = jax.jit(Transformer(source.cfg, jnp.float32).apply)
    reference = model({"params": source.load().params}, tokens)
    for column, bits in enumerate((2, 4)):
        _, w_hat = rounded(source, bits)
        expected = compare_logits(reference, model({"params": changed(source, w_hat)}, tokens)).kl
        # Logarithms of up to 10 in float32, whose differences are averaged: far below a thousandth of these losses.
        found = measured["divergences"].losses[PATH][LAYER, 2 * column]
        assert found == pytest.approx(expected, rel=1e-3)


def test_hessian_is_the_relative_error_of_the_outputs_times_the_share_of_weights(measured, source, make_trial):
    params = source.load().params
    blocks = [jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), params["layers"]) for i in range(2)]
    hidden = jnp.asarray(params["embed"]["embedding"][make_trial().calibration.tokens])
    x = linear_inputs(source.cfg, blocks[1], apply_block(source.cfg, blocks[0], hidden))[PATH]
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    for column, bits in enumerate((2, 3, 4)):
        w, w_hat = (np.asarray(part, np.float64) for part in rounded(source, bits))
        share = w.size / (2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24))
        expected = share * np.square(x @ (w - w_hat)).sum() / np.square(x @ w).sum()
        assert measured["output_errors"].losses[PATH][LAYER, column] == pytest.approx(expected, rel=1e-4)


def test_projections_have_the_fisher_informations_mean_square(source):
    """E[<G, d>^2] is the sum over positions of the variance of the logits' change under the model's own prediction."""
    cfg, params = source.cfg, jax.tree.map(jnp.asarray, source.load().params)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 40, (1, 8)), jnp.int32)
    w, w_hat = rounded(source, 3)
    d = jnp.zeros((1, 2, *w.shape)).at[0, LAYER].set(w_hat - w)
    kernel = params["layers"]["mlp"]["up_proj"]["kernel"]

    def logits(kernel):
        flat = flatten(params) | {LAYER_PREFIX + PATH: kernel}
        return Transformer(cfg, jnp.float32).apply({"params": unflatten(flat)}, tokens)

    out, change = jax.jvp(logits, (kernel,), (d[0],))
    p = np.asarray(jax.nn.softmax(out), np.float64)[0]
    change = np.asarray(change, np.float64)[0]
    mean = (p * change).sum(-1, keepdims=True)
    exact = (p * np.square(change - mean)).sum()
    draws = 600
    keys = jax.random.split(jax.random.key(0), draws)
    products = jax.jit(jax.vmap(lambda key: projections.__wrapped__(cfg, params, {PATH: d}, tokens, key)[PATH]))(keys)
    assert not np.asarray(products)[:, :, 1 - LAYER].any()
    samples = np.square(np.asarray(products, np.float64)[:, 0, LAYER])
    # The mean of independent squares: within four of its standard errors.
    assert abs(samples.mean() - exact) < 4 * samples.std(ddof=1) / draws**0.5
    assert samples.std(ddof=1) / draws**0.5 < 0.15 * exact


def test_gradient_is_half_the_mean_square_over_the_tokens(source, make_trial, one_device):
    trial = make_trial(widths=(3.0, 4.0))
    found = fisher_losses(source, trial, devices=one_device)
    again = fisher_losses(source, trial, devices=one_device)
    for path, losses in found.losses.items():
        np.testing.assert_array_equal(losses, again.losses[path])
    params = jax.tree.map(jnp.asarray, source.load().params)
    w, w_hat = rounded(source, 3)
    d = jnp.zeros((1, 2, *w.shape)).at[0, LAYER].set(w_hat - w)
    tokens = trial.calibration.tokens
    key = jax.random.key(0)
    products = [
        float(
            projections(source.cfg, params, {PATH: d}, jnp.asarray(row)[None], jax.random.fold_in(key, i))[PATH][0, 1]
        )
        for i, row in enumerate(tokens)
    ]
    # One product in another order of sums.
    assert found.losses[PATH][LAYER, 0] == pytest.approx(np.mean(np.square(products)) / (2 * tokens.shape[1]), rel=1e-3)


def test_a_killed_measurement_goes_on_to_the_same_losses(measured, source, make_trial, one_device, tmp_path):
    place = tmp_path / "losses.json"

    def kill(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output_errors(
            source, make_trial(), finished=FinishedRows(place, {"a": (1,)}), progress=kill, devices=one_device
        )
    kept = FinishedRows(place, {"a": (1,)})
    assert kept.read(0) is not None
    assert kept.read(1) is None
    seen = []
    resumed = output_errors(
        source, make_trial(), finished=kept, progress=lambda *step: seen.append(step), devices=one_device
    )
    assert seen == [(1, 2), (2, 2)]
    for path, losses in measured["output_errors"].losses.items():
        np.testing.assert_array_equal(resumed.losses[path], losses)
    with pytest.raises(RunFolderError, match=r"losses.json holds losses of another model or version, or that were"):
        FinishedRows(place, {"a": (2,)})


def test_a_kernel_is_tried_as_the_method_rounds_it(source, make_trial, one_device):
    trial = make_trial("gptq", (2.0, 3.0))
    layer = next(float_layers(source, trial.calibration, one_device))
    name, path, w, known = next(layer.kernels(with_moments=True))
    assert (name, path) == ("attn/q_proj/kernel of layer 0", "attn/q_proj/kernel")
    for target, w_hat in zip(trial.targets, trial.roundings(name, path, w, known), strict=True):
        alone = trial.plan.method.round(path, w, known, target, trial.plan.options).w_hat
        np.testing.assert_array_equal(w_hat, alone)
        assert len(np.unique(np.asarray(w_hat)[:, 0])) <= target.levels


def test_what_cannot_be_tried_is_refused_before_any_work(source, make_trial):
    refused = {
        r"widths to choose from are 3": {"widths": (3.0,)},
        r"losses are found on text, and there is none": {"calibrated": False},
        r"smoothquant makes several kernels together, so none can be tried": {"method": "smoothquant"},
    }
    for message, settings in refused.items():
        with pytest.raises(AllocationError, match=message):
            make_trial(**settings).check(source.cfg)
    with pytest.raises(QuantizerError, match="the grid 'free' has levels of its own in every kernel"):
        make_trial("kmeans", grid="free").check(source.cfg)
    with pytest.raises(AllocationError, match=r"unknown measure 'gradients' .*\n.*did you mean 'gradient'"):
        measure_by_name("gradients")


def test_a_loss_that_is_no_number_is_named():
    rows = [{"a": [1.0, 2.0]}, {"a": [1.0, float("nan")]}]
    with pytest.raises(AllocationError, match="a of layer 1 at 3 bits loses nan"):
        Sensitivities.of_rows("kl", (2.0, 3.0), rows)
