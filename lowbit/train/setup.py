"""From a config to everything that a run needs, each part checked before any work begins."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lowbit.config import ConfigDict
from lowbit.data import TokenDataset, TokenWindows
from lowbit.distill.cached import TaughtDataset, distill_from_cache
from lowbit.distill.objectives import TEACHER, distill
from lowbit.errors import ConfigError, ModelError, TokenizerError
from lowbit.llama import ActivationRounding, LlamaConfig
from lowbit.llama.activations import Ranges
from lowbit.models import Transformer
from lowbit.models.activations import range_variables
from lowbit.models.hf import TOKENIZER_FILES
from lowbit.models.pretrained import Pretrained
from lowbit.models.rotation import rotate, rotated_config
from lowbit.train import sharding
from lowbit.train.activations import calibrate
from lowbit.train.coreset import Scorer, check_coreset, make_scorer, with_coreset
from lowbit.train.learner import check_length, check_program, make_learner, make_model, make_plan
from lowbit.train.objectives import next_token
from lowbit.train.sources import load_scales, load_source
from lowbit.train.state import TrainState, Tree, merge, split
from lowbit.train.step import Objective
from lowbit.train.teacher import asks_for_teacher, check_distill, load_teacher, make_mix
from lowbit.train.teacher_cache import Lesson, check_cacheable, identity_of, open_cache, read_windows
from lowbit.train.texts import check_names, open_texts
from lowbit.tree import Rule, init_state, start_masters


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run that is ready to start. Another method replaces `objective` and adds to `constants`.

    Attributes:
      config: the locked config.
      cfg: the model's sizes.
      rules: which parameter has which quantizer.
      model: the quantized model, apply-only.
      params: float masters the run starts from, numpy or jax, as `Transformer.init` nests them.
      constants: further collections for the objective, such as a teacher; numpy or jax. No checkpoint holds them.
      objective: what is minimized.
      optimizer: what minimizes it.
      frozen: paths that stay as they start.
      mesh: the devices.
      train: batches by step.
      valid: windows of each text to evaluate on, by name.
      byte_lengths: UTF-8 bytes of each token, None without a tokenizer or with one that can lose text.
      tokenizer_files: what the run folder keeps of the tokenizer.
      teacher: fingerprint of the teacher among the constants; "" where none teaches.
      scorer: by which windows are chosen, where `train` is a `CoresetDataset`.
      scales: collections "quant" and "grid" that the run starts with; None makes them of the masters.
      ranges: static ranges of activations, which stand in the collection "grid".
    """

    config: ConfigDict
    cfg: LlamaConfig
    rules: tuple[Rule[Any], ...]
    model: nn.Module
    params: Tree
    constants: Tree
    objective: Objective
    optimizer: optax.GradientTransformation
    frozen: frozenset[str]
    mesh: Mesh
    train: TokenDataset
    valid: Mapping[str, TokenWindows]
    byte_lengths: np.ndarray | None
    tokenizer_files: Mapping[str, bytes]
    teacher: str = ""
    scorer: Scorer | None = None
    scales: Tree | None = None
    ranges: Ranges = dataclasses.field(default_factory=dict)

    def make_state(self, params: Tree, scales: Tree | None = None, ranges: Tree | None = None) -> TrainState:
        """Returns the state before the first step, from float masters; pure, so it may be jitted.

        Args:
          params: the masters.
          scales: collections "quant" and "grid"; None makes them of the masters.
          ranges: `range_variables` of what was calibrated; None takes those of this experiment, as literals under jit.
        """
        made = init_state(self.rules, params) | ({} if scales is None else scales)
        variables = {"params": start_masters(self.rules, params, made), **made}
        frozen, trained = split({name: variables[name] for name in ("params", "quant")}, self.frozen)
        grid = merge(variables["grid"], range_variables(self.ranges) if ranges is None else ranges)
        constants = {"grid": grid, **frozen, **self.constants}
        return TrainState.create(trained, constants, self.optimizer)

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and shardings of the state."""
        shapes = jax.eval_shape(self.make_state, self.params)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            sharding.state_shardings(self.mesh, shapes),
        )

    def restorable_state(self) -> TrainState:
        """Returns `abstract_state` with arrays in place of what no checkpoint holds: `constants`, on their devices."""
        return self._with_constants(self.abstract_state())

    def initial_state(self) -> TrainState:
        """Returns the state before the first step, each array on its devices."""
        abstract = self.abstract_state()
        # What is there already stays out of the compiled function, which would hold it as a literal.
        bare = dataclasses.replace(self, constants={})
        made = {name: tree for name, tree in abstract.constants.items() if name not in self.constants}
        shardings = jax.tree.map(lambda leaf: leaf.sharding, dataclasses.replace(abstract, constants=made))
        places = sharding.variable_shardings(self.mesh, {"params": self.params})["params"]
        make = jax.jit(bare.make_state, out_shardings=shardings)
        state = make(jax.device_put(self.params, places), self.scales, range_variables(self.ranges))
        return dataclasses.replace(state, constants=self._with_constants(abstract).constants | state.constants)

    def _with_constants(self, abstract: TrainState) -> TrainState:
        places = {name: jax.tree.map(lambda leaf: leaf.sharding, abstract.constants[name]) for name in self.constants}
        placed = jax.device_put(self.constants, places, may_alias=False)  # steps take their state over
        return dataclasses.replace(abstract, constants=abstract.constants | placed)


def prepare(config: ConfigDict) -> Experiment:
    """Builds the parts of a run, the cheap checks first.

    Raises:
      LowbitError: whatever in the config cannot be: sizes, names, files, shapes.
    """
    plan = make_plan(config)
    mesh = sharding.make_mesh(config.mesh.to_dict())
    sharding.check_batch(mesh, config.train.batch_size, config.train.accumulate)
    sharding.check_batch(mesh, config.evaluation.batch_size, 1)
    check_distill(config)
    check_coreset(config)
    check_names(config.data.train, config.data.valid)

    source = load_source(config) if config.model.source else None
    cfg, make_params, tokenizer_files = _start(config, source)
    check_heads(cfg, mesh)
    check_length(config, cfg)
    check_program(config, cfg)
    learner = make_learner(config, cfg, plan)
    texts = open_texts(config, cfg.vocab_size, tokenizer_files)
    model = learner.model.clone(separator=texts.separator)
    share, shares = sharding.batch_share(mesh)
    train = TokenDataset(
        texts.train,
        config.train.batch_size,
        config.seed,
        process_index=share,
        process_count=shares,
    )
    teacher = load_teacher(config, source) if asks_for_teacher(config) else None
    if teacher is not None:
        check_heads(teacher.cfg, mesh)
    # Behind a cache the teacher is only asked who it is.
    live = None if config.distill.cache else teacher
    if teacher is not None and config.distill.cache:
        train = open_cache(config, teacher, cfg, train, texts.separator)
    train = with_coreset(config, train)
    objective = make_objective(config, model, None if live is None else live.cfg)
    if isinstance(train, TaughtDataset):
        objective = distill_from_cache(model, make_mix(config), train.cache.identity.k, config.train.loss_chunks)
    params = make_params()
    ranges: Ranges = {}
    if plan.rounding.is_static:
        watched = make_model(config, cfg, None, ActivationRounding(cache=plan.rounding.cache))
        ranges = calibrate(
            watched.clone(separator=texts.separator),
            params,
            plan.rounding,
            texts.train,
            count=config.activations.calibration,
            batch_size=config.evaluation.batch_size,
            mesh=mesh,
        )
    return Experiment(
        config=config,
        cfg=cfg,
        rules=plan.rules,
        model=model,
        params=params,
        constants={} if live is None else {TEACHER: live.params},
        objective=objective,
        optimizer=learner.optimizer,
        frozen=learner.frozen,
        mesh=mesh,
        train=train,
        valid=texts.valid,
        byte_lengths=texts.byte_lengths,
        tokenizer_files=tokenizer_files,
        teacher="" if teacher is None else teacher.fingerprint,
        scorer=make_scorer(config, model, None if live is None else make_teacher_model(config, model, live.cfg)),
        scales=load_scales(config) if config.model.source_scales else None,
        ranges=ranges,
    )


def make_lesson(config: ConfigDict, k: int) -> Lesson:
    """Returns what it takes to cache what a config's teacher says of the config's text.

    Raises:
      ConfigError: the config asks for no teacher's logits.
      DataError: k outside of the vocabulary.
      LowbitError: as `prepare`.
    """
    check_cacheable(config)
    experiment = prepare(config)
    teacher = load_teacher(config, None)
    separator = getattr(experiment.model, "separator")  # noqa: B009  (nn.Module does not declare it)
    identity = identity_of(config, teacher, experiment.cfg, experiment.train, separator, k)
    model = make_model(config, teacher.cfg, None).clone(remat="none", separator=separator)
    windows = read_windows(config, experiment.train)
    return Lesson(identity, windows, experiment.train, model, teacher.params, config.train.loss_chunks)


def make_objective(config: ConfigDict, model: Transformer, teacher: LlamaConfig | None) -> Objective:
    """Returns what a run minimizes: cross entropy, or where a teacher of these sizes is given, the section `distill`.

    Raises:
      ConfigError: a weight or a temperature out of range.
    """
    chunks = config.train.loss_chunks
    if teacher is None:
        return next_token(model, chunks)
    return distill(make_teacher_model(config, model, teacher), model, make_mix(config), chunks)


def make_teacher_model(config: ConfigDict, student: Transformer, cfg: LlamaConfig) -> Transformer:
    """Returns the float model of a teacher of these sizes, that sees of a window what its student sees."""
    # No gradient reaches the teacher: nothing of it is kept, so nothing is computed again.
    return make_model(config, cfg, None).clone(remat="none", separator=student.separator)


def start_sizes(config: ConfigDict, source: LlamaConfig | None) -> LlamaConfig:
    """Returns the sizes of the model that a run trains, from those of its source; None for a run from scratch.

    Raises:
      ConfigError: `model.rotate` without a source.
      ModelError: sizes that cannot be, or a rotation of a model with LayerNorms behind its products.
    """
    settings = config.model
    if source is not None:
        cfg = dataclasses.replace(source, linear_norm=settings.linear_norm or source.linear_norm)
        return rotated_config(cfg) if settings.rotate else cfg
    if settings.rotate:
        raise ConfigError(
            "model.rotate is set, and a run from scratch has no weights to turn", "set model.source, or leave it out"
        )
    return LlamaConfig(**settings.architecture.to_dict(), linear_norm=settings.linear_norm)


def _start(
    config: ConfigDict, source: Pretrained | None
) -> tuple[LlamaConfig, Callable[[], Tree], Mapping[str, bytes]]:
    """The sizes, parameters and tokenizer that a run begins with: those of its source, or fresh ones.

    Parameters come as a function, as fresh ones are not for free: other parts are checked first.
    """
    settings = config.model
    cfg = start_sizes(config, None if source is None else source.cfg)
    tokenizer = _tokenizer_files(Path(settings.tokenizer).expanduser()) if settings.tokenizer else {}
    if source is not None:
        files = tokenizer or source.tokenizer_files
        if settings.rotate:
            return cfg, lambda: rotate(source.params, source.cfg, config.seed), files
        return cfg, lambda: source.params, files
    model = make_model(config, cfg, None)

    def make_params() -> Tree:
        init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])
        return jax.tree.map(np.asarray, init(jax.random.key(config.seed)))

    return cfg, make_params, tokenizer


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"no tokenizer.json in {folder}", "set model.tokenizer to the folder of a tokenizer")
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def check_heads(cfg: LlamaConfig, mesh: sharding.AnyMesh) -> None:
    """Raises ModelError where mesh axis "tensor" would cut through a head."""
    pieces = mesh.shape["tensor"]
    if cfg.num_kv_heads % pieces or cfg.num_heads % pieces:
        raise ModelError(
            f"mesh axis 'tensor' of {pieces} cuts through heads ({cfg.num_heads} query, {cfg.num_kv_heads} key-value)",
            "choose a size of mesh.tensor that divides both, or use mesh.fsdp",
        )
