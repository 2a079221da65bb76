"""What a run starts from, or learns from: a pretrained model, or a run of this package."""

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit import formats
from lowbit.config import ConfigDict
from lowbit.errors import ConfigError
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, LlamaConfig, param_shapes
from lowbit.llama.activations import from_meta
from lowbit.models import pretrained
from lowbit.models.layerwise import LayerSource, ModelInMemory, open_model
from lowbit.models.pretrained import Pretrained
from lowbit.numerics.quantizers import State
from lowbit.train.activations import activation_rounding
from lowbit.train.adapters import model_rules
from lowbit.train.quantization import FLOAT, fixed_codes, quantization_rules
from lowbit.train.run_folder import RunFolder
from lowbit.train.state import Tree
from lowbit.train.trained import Trained, load_trained
from lowbit.tree import fake_quant, flatten, resolve, unflatten
from lowbit.tree.apply import state_at
from lowbit.tree.paths import get

DECIDES_SCALES = (
    *("method", "bits", "layer_bits", "granularity", "symmetric"),
    *("scale_dtype", "double_quant", "overrides"),
)
"""Keys of the section `quant` that two runs must share for the scales of one to mean the same in the other."""


def load_sizes(source: str) -> LlamaConfig:
    """Returns the sizes of the model that `load_masters` would load, without reading a weight; raises as it does."""
    if not is_run(source):
        return pretrained.load_config(source)
    return RunFolder(Path(source).expanduser()).read()[1]


def load_masters(source: str, still: Collection[str] = ()) -> Pretrained:
    """Loads float weights to go on from: of a run folder, the float32 masters of its newest checkpoint.

    Where a run's codes are fixed, its masters hold nothing of what it learned, and the weights that it computes with
    stand in their place.

    Args:
      source: a run folder, or what `lowbit.models.pretrained.load` takes.
      still: paths whose codes stay fixed: their masters are needed as they are, to make the same codes again.

    Raises:
      LowbitError: as `lowbit.train.load_trained` and `lowbit.models.pretrained.load`.
    """
    if not is_run(source):
        return pretrained.load(source)
    run = load_trained(Path(source).expanduser())
    params = flatten(run.params)
    if decoded := fixed_codes(run.rules, run.params) - set(still):
        computed = flatten(_decoded(run))
        params |= {path: computed[path] for path in decoded}
    return Pretrained(
        run.cfg, unflatten({path: np.asarray(leaf) for path, leaf in params.items()}), run.tokenizer_files
    )


def load_source(config: ConfigDict) -> Pretrained:
    """Loads the masters that a run of this config starts from, of `config.model.source`; raises as `load_masters`."""
    source = config.model.source
    if not config.model.source_scales or not is_run(source):
        return load_masters(source)
    sizes = param_shapes(load_sizes(source)).items()
    shapes = unflatten({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in sizes})
    return load_masters(source, fixed_codes(model_rules(config), shapes))


def _decoded(run: Trained) -> Any:
    return jax.jit(functools.partial(fake_quant, run.rules))(run.params, run.state)


def open_masters(source: str) -> LayerSource:
    """Opens what `load_masters` loads: one layer at a time, but for a run, whose checkpoint is read whole.

    Args and raises: as `load_masters`.
    """
    return ModelInMemory(load_masters(source)) if is_run(source) else open_model(source)


def load_scales(config: ConfigDict) -> Tree:
    """Returns the quantizers' state, collections "quant" and "grid", of the run that `config.model.source` names.

    Where this config's codes are fixed, they are the source's: those that were fixed there, or what its scales make of
    its masters.

    Raises:
      ConfigError: the source is no run, is turned on its way here, rounds to other grids than this config, or has zero
        points between the levels on which this config's codes move.
      LowbitError: as `lowbit.train.load_trained`.
    """
    source = config.model.source
    if not is_run(source):
        raise ConfigError(
            f"model.source_scales is set, and model.source {source!r} is no run, whose scales could be taken",
            "name a folder that train or quantize wrote, or leave model.source_scales out",
        )
    if config.model.rotate:
        raise ConfigError(
            "model.rotate turns weights, and no scale of the source fits them then", "leave one of both out"
        )
    run = load_trained(Path(source).expanduser())
    ours, theirs = config.quant.to_dict(), run.config.quant.to_dict()
    odd = [key for key in DECIDES_SCALES if ours[key] != theirs[key]]
    # Where overrides take every kernel, keys may differ that decide nothing.
    if odd and _grids(config.quant, run) != _grids(run.config.quant, run):
        raise ConfigError(
            f"the scales of {source} are for quant."
            + ", quant.".join(f"{key}={theirs[key]!r} (here {ours[key]!r})" for key in odd),
            "give both the same grid, or leave model.source_scales out",
        )
    if any(q is not None and q.adapter for q in resolve(run.rules, run.params).values()):
        raise ConfigError(
            f"{source} has adapters beside its codes, and scales alone would leave them out",
            "name the run that it started from, or leave model.source_scales out, and its weights are rounded anew",
        )
    grid, theirs_fixed = {}, fixed_codes(run.rules, run.params)
    learned = flatten(run.state["quant"])
    for path, quantizer in resolve(model_rules(config), run.params).items():
        state = state_at(run.state, path)
        if quantizer is not None and quantizer.adapter:
            _check_base(path in theirs_fixed, config)
            learned = {key: leaf for key, leaf in learned.items() if not key.startswith(f"{path}/")}
            fresh = quantizer.init(jnp.zeros(np.shape(get(run.params, path)), jnp.float32))
            learned |= {f"{path}/{key}": leaf for key, leaf in fresh.items() if key != "grid"}
            grid[path] = state
            continue
        moving = state["grid"] if path in theirs_fixed else state
        if quantizer is not None and quantizer.fixed:
            grid[path] = moving
            continue
        if "grid" in moving:
            grid[path] = moving["grid"]
        if path in theirs_fixed:
            _check_whole(state, source, path)
    return jax.tree.map(np.asarray, {"quant": unflatten(learned), "grid": unflatten(grid)})


def _grids(quant: ConfigDict, run: Trained) -> dict[str, list[Any]]:
    """What scales mean by a section `quant`: of each parameter of a run, for each of its layers."""
    found = resolve(quantization_rules(quant), run.params)
    return {
        path: [
            (one.name.removesuffix("_fixed"), one.grid, one.granularity, one.scale_dtype)
            for one in map(quantizer.layer, range(run.cfg.num_layers))
        ]
        for path, quantizer in found.items()
        if quantizer is not None
    }


def _check_base(fixed: bool, config: ConfigDict) -> None:
    """Raises ConfigError where the codes of the source cannot be those that stay beside this config's adapters."""
    if config.adapters.start != "zero":
        raise ConfigError(
            f"adapters.start={config.adapters.start!r} makes codes of its own, and model.source_scales takes others",
            "set adapters.start=zero, or leave model.source_scales out",
        )
    if fixed:
        raise ConfigError(
            f"the codes of {config.model.source} were made with other scales than those that it learned",
            "name the run that it started from, or leave model.source_scales out",
        )


def _check_whole(state: State, source: str, path: str) -> None:
    """Raises ConfigError where zero points that learned under fixed codes are no whole numbers."""
    if "zero" in state and not np.array_equal(state["zero"], np.round(state["zero"])):
        raise ConfigError(
            f"zero points of {path} in {source} learned, and codes that move stand on whole ones",
            "set quant.codes=fixed here too, or leave model.source_scales out",
        )


def load_as_it_predicts(source: str) -> Pretrained:
    """Loads the weights that a model computes with: of a run folder, what its quantizers make of the masters.

    Args: as `load_masters`.

    Raises:
      ConfigError: a run or packed file whose activations are rounded.
      LowbitError: as `load_masters`.
    """
    check_float_activations(source)
    if not is_run(source):
        return pretrained.load(source)
    run = load_trained(Path(source).expanduser())
    return Pretrained(run.cfg, jax.tree.map(np.asarray, _decoded(run)), run.tokenizer_files)


def source_rounding(source: str) -> ActivationRounding:
    """Returns how the model of a source rounds its activations, without reading a weight; `load_masters` leaves it out.

    Raises:
      LowbitError: a run folder or packed file that cannot be read.
    """
    path = Path(source).expanduser()
    if is_run(source):
        config, _, _ = RunFolder(path).read()
        return activation_rounding(config.activations)
    if not path.is_file() or path.suffix == ".gguf":
        return FLOAT_ACTIVATIONS
    packed = formats.read(path)
    return from_meta(packed.meta, LlamaConfig.from_hf(packed.config, f"the config in {path}"))[0]


def check_float_activations(source: str) -> None:
    """Raises ConfigError for a teacher whose activations are rounded: its weights alone are another model."""
    rounding = source_rounding(source)
    if rounding:
        raise ConfigError(
            f"{source} was made for {rounding.described()}, and a teacher computes in floats",
            "name a model without rounding of activations, or the float model: distill.teacher",
        )


def float_origin(source: str) -> str:
    """Returns the float model that a chain of runs began with; a source that is no run is its own origin.

    A run of the method "float" is a float model as well: the chain ends there.

    Raises:
      ConfigError: the first run of the chain started from scratch or from a packed file, or the runs name each other in
        a circle.
      RunFolderError, ConfigError: a run folder that cannot be read.
    """
    chain = [source]
    while is_run(chain[-1]):
        config, _, _ = RunFolder(Path(chain[-1]).expanduser()).read()
        if config.quant.method == FLOAT:
            break
        if not config.model.source:
            raise ConfigError(
                f"{chain[-1]} was quantized from its first step: no float model stands at its beginning",
                "name a teacher: distill.teacher",
            )
        if config.model.source in chain:
            raise ConfigError(
                f"the runs {', '.join(chain)} name each other as their start", "name a teacher: distill.teacher"
            )
        chain.append(config.model.source)
    origin = Path(chain[-1]).expanduser()
    # A .gguf file stays: published float models come in it as well.
    if origin.is_file() and origin.suffix != ".gguf":
        raise ConfigError(
            f"{chain[-1]} is a packed file, whose weights are rounded: no float model to learn from",
            "name a teacher: distill.teacher",
        )
    return chain[-1]


def turns(source: str) -> tuple[int, ...]:
    """Returns the seeds by which a chain of runs turned (`model.rotate`) what it began with, the newest first.

    Raises:
      RunFolderError, ConfigError: a run folder that cannot be read.
    """
    seeds: list[int] = []
    seen: set[str] = set()
    while is_run(source) and source not in seen:
        seen.add(source)
        config, _, _ = RunFolder(Path(source).expanduser()).read()
        if config.model.rotate:
            seeds.append(config.seed)
        source = config.model.source
    return tuple(seeds)


def is_run(source: str) -> bool:
    """Whether a source is a run folder of ours: it holds a config and, in model/, what the weights mean."""
    path = Path(source).expanduser()
    return bool(source) and (path / "config.json").is_file() and (path / "model").is_dir()
