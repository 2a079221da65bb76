"""From a config to everything that a run needs, each part checked before any work begins."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lowbit import config as configs
from lowbit.config import ConfigDict, choose
from lowbit.data import TextTokenizer, TokenDataset, TokenWindows, byte_lengths, encode_files
from lowbit.distill.objectives import TEACHER, distill_from
from lowbit.errors import ConfigError, DataError, ModelError, TokenizerError, nearest
from lowbit.linen import quantize
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import Transformer
from lowbit.models.hf import TOKENIZER_FILES
from lowbit.models.layers import untransformed
from lowbit.models.pretrained import Pretrained
from lowbit.train import sharding
from lowbit.train.limits import check_limits
from lowbit.train.objectives import next_token
from lowbit.train.optimizers import Group, adamw, assign_groups, default_groups, frozen_paths, leaf_paths, muon
from lowbit.train.quantization import quantization_rules
from lowbit.train.schedules import Schedule, make_schedule
from lowbit.train.sources import load_masters
from lowbit.train.state import TrainState, Tree, split
from lowbit.train.step import Objective
from lowbit.train.teacher import check_distill, load_teacher
from lowbit.tree import Rule, init_state, resolve, unflatten

OPTIMIZERS = {"adamw": adamw, "muon": muon}
"""By the name that a config gives."""


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

    def make_state(self, params: Tree) -> TrainState:
        """Returns the state before the first step, from float masters; pure, so it may be jitted."""
        variables = {"params": params, **init_state(self.rules, params)}
        frozen, trained = split({name: variables[name] for name in ("params", "quant")}, self.frozen)
        constants = {"grid": variables["grid"], **frozen, **self.constants}
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
        abstract = self.abstract_state()
        places = {name: jax.tree.map(lambda leaf: leaf.sharding, abstract.constants[name]) for name in self.constants}
        placed = jax.device_put(self.constants, places, may_alias=False)  # steps take their state over
        return dataclasses.replace(abstract, constants=abstract.constants | placed)

    def initial_state(self) -> TrainState:
        """Returns the state before the first step, each array on its devices."""
        whole = self.restorable_state()
        # What is there already stays out of the compiled function, which would hold it as a literal.
        bare = dataclasses.replace(self, constants={})
        shardings = jax.tree.map(lambda leaf: leaf.sharding, bare.abstract_state())
        places = sharding.variable_shardings(self.mesh, {"params": self.params})["params"]
        state = jax.jit(bare.make_state, out_shardings=shardings)(jax.device_put(self.params, places))
        return dataclasses.replace(state, constants=whole.constants | state.constants)


def prepare(config: ConfigDict) -> Experiment:
    """Builds the parts of a run, the cheap checks first.

    Raises:
      LowbitError: whatever in the config cannot be: sizes, names, files, shapes.
    """
    check_limits(config)
    steps = configs.steps(config)
    schedule = make_schedule(steps=steps, **config.schedule.to_dict())
    mesh = sharding.make_mesh(config.mesh.to_dict())
    sharding.check_batch(mesh, config.train.batch_size, config.train.accumulate)
    sharding.check_batch(mesh, config.evaluation.batch_size, 1)
    rules = tuple(quantization_rules(config.quant))
    check_distill(config)
    choose("optimizer", config.optimizer.name, OPTIMIZERS)
    _check_files(config.data.train, config.data.valid)

    source = load_masters(config.model.source) if config.model.source else None
    cfg, make_params, tokenizer_files = _start(config, source)
    check_heads(cfg, mesh)
    if config.train.sequence_length > cfg.max_positions:
        raise ConfigError(
            f"train.sequence_length={config.train.sequence_length} exceeds the model's {cfg.max_positions} positions",
            "shorten the sequences",
        )
    model = make_model(config, cfg, rules)
    shapes = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in param_shapes(cfg).items()})
    resolve(rules, shapes)
    groups = parameter_groups(
        config.optimizer,
        {"params": shapes, "quant": jax.eval_shape(functools.partial(init_state, rules), shapes)["quant"]},
    )
    optimizer = make_optimizer(config.optimizer, schedule, groups)
    all_tokens = all(path.endswith(".npy") for path in (*config.data.train, *config.data.valid))
    tokenizer = _load_tokenizer(tokenizer_files, cfg.vocab_size, for_text=not all_tokens)
    open_windows = functools.partial(_windows, config.train.sequence_length, cfg.vocab_size, tokenizer)
    share, shares = sharding.batch_share(mesh)
    train = TokenDataset(
        open_windows(config.data.train),
        config.train.batch_size,
        config.seed,
        process_index=share,
        process_count=shares,
    )
    valid = {Path(path).stem: open_windows((path,)) for path in config.data.valid}
    _check_valid(valid, config.evaluation.windows)
    teacher = load_teacher(config, source) if config.distill.weight else None
    if teacher is not None:
        check_heads(teacher.cfg, mesh)
    return Experiment(
        config=config,
        cfg=cfg,
        rules=rules,
        model=model,
        params=make_params(),
        constants={} if teacher is None else {TEACHER: teacher.params},
        objective=make_objective(config, model, None if teacher is None else teacher.cfg),
        optimizer=optimizer,
        frozen=frozen_paths(groups),
        mesh=mesh,
        train=train,
        valid=valid,
        byte_lengths=_byte_lengths(tokenizer),
        tokenizer_files=tokenizer_files,
        teacher="" if teacher is None else teacher.fingerprint,
    )


def make_objective(config: ConfigDict, model: nn.Module, teacher: LlamaConfig | None) -> Objective:
    """Returns what a run minimizes: cross entropy, or where a teacher of these sizes is given, the section `distill`.

    Raises:
      ConfigError: a weight or a temperature out of range.
    """
    chunks = config.train.loss_chunks
    if teacher is None:
        return next_token(model, chunks)
    # No gradient reaches the teacher: nothing of it is kept, so nothing is computed again.
    wise = make_model(config, teacher, None).clone(remat="none")
    return distill_from(wise, model, config.distill.weight, config.distill.temperature, chunks)


def make_optimizer(
    settings: ConfigDict, schedule: Schedule, groups: Mapping[str, Group]
) -> optax.GradientTransformation:
    """Returns what `config.optimizer` describes, for parameters in these groups.

    Raises:
      ConfigError: an unknown name, or a number out of range.
    """
    make = choose("optimizer", settings.name, OPTIMIZERS)
    momentum = {"momentum": settings.momentum} if make is muon else {}
    return make(
        schedule,
        settings.learning_rate,
        groups,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        clip_norm=None if math.isinf(settings.clip_norm) else settings.clip_norm,
        **momentum,
    )


def make_model(config: ConfigDict, cfg: LlamaConfig, rules: Sequence[Rule[Any]] | None) -> Transformer:
    """Returns the decoder with `rules` inside, or the float one for None."""
    settings = config.model
    dtypes = ("float32", "bfloat16", "float16")
    if settings.compute_dtype not in dtypes:
        raise ConfigError(
            f"unknown model.compute_dtype {settings.compute_dtype!r}", nearest(settings.compute_dtype, dtypes)
        )
    transform = untransformed if rules is None else functools.partial(_quantized, rules)
    return Transformer(
        cfg, jnp.dtype(settings.compute_dtype), remat=settings.remat, attention=settings.attention, transform=transform
    )


def parameter_groups(settings: ConfigDict, shapes: Tree) -> dict[str, Group]:
    """Returns the optimizer group of each path of {"params", "quant"}, from `config.optimizer`.

    Raises:
      RuleError: a pattern of `frozen` that nothing matches.
      ConfigError: a negative or infinite factor, or nothing left to train.
    """
    frozen = [Rule(pattern, Group(frozen=True)) for pattern in settings.frozen]
    usual = default_groups(
        leaf_paths(shapes),
        settings.weight_decay,
        settings.scale_learning_rate,
        after=[rule.pattern for rule in frozen],
        orthogonal=settings.name == "muon",
    )
    return assign_groups([*frozen, *usual], shapes)


def _quantized(rules: Sequence[Rule[Any]], module_cls: Any, prefix: str) -> Any:
    return quantize(module_cls, rules, prefix)


def _start(
    config: ConfigDict, source: Pretrained | None
) -> tuple[LlamaConfig, Callable[[], Tree], Mapping[str, bytes]]:
    """The sizes, parameters and tokenizer that a run begins with: those of its source, or fresh ones.

    Parameters come as a function, as fresh ones are not for free: other parts are checked first.
    """
    settings = config.model
    tokenizer = _tokenizer_files(Path(settings.tokenizer)) if settings.tokenizer else {}
    if source is not None:
        return source.cfg, lambda: source.params, tokenizer or source.tokenizer_files
    cfg = LlamaConfig(**settings.architecture.to_dict())
    model = make_model(config, cfg, None)

    def make_params() -> Tree:
        init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])
        return jax.tree.map(np.asarray, init(jax.random.key(config.seed)))

    return cfg, make_params, tokenizer


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"no tokenizer.json in {folder}", "set model.tokenizer to the folder of a tokenizer")
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def _load_tokenizer(files: Mapping[str, bytes], vocab_size: int, for_text: bool) -> TextTokenizer | None:
    if "tokenizer.json" not in files:
        return None
    # Only text needs to know which token ends a document: token files hold theirs, and any id will do in its place.
    return TextTokenizer.load(files, vocab_size=vocab_size, separator=None if for_text else 0)


def _byte_lengths(tokenizer: TextTokenizer | None) -> np.ndarray | None:
    try:
        return None if tokenizer is None else byte_lengths(tokenizer)
    except TokenizerError:  # one without bytes: nats per token can be reported all the same
        return None


def _windows(length: int, vocab_size: int, tokenizer: TextTokenizer | None, paths: Sequence[str]) -> TokenWindows:
    """Token files are mapped; anything else is text for the model's tokenizer."""
    tokens = [path for path in paths if path.endswith(".npy")]
    if len(tokens) == len(paths):
        return TokenWindows.open(tokens, length=length, vocab_size=vocab_size)
    if tokens:
        raise ConfigError(f"{tokens[0]} is a token file among texts", "give either token files or texts")
    if tokenizer is None:
        raise TokenizerError(
            f"{paths[0]} is text, and the model has no tokenizer", "set model.tokenizer, or give .npy token files"
        )
    encoded = encode_files(paths, tokenizer)
    if len(encoded) < length + 1:
        raise DataError(
            f"{', '.join(paths)} holds {len(encoded):,} tokens, and a window of {length:,} needs {length + 1:,}",
            "give more text, or lower train.sequence_length",
        )
    return TokenWindows((encoded,), length)


def _check_files(train: Sequence[str], valid: Sequence[str]) -> None:
    if not train:
        raise ConfigError("data.train names no file", "set --config.data.train=FILE[,FILE] (.npy tokens, or text)")
    names = [Path(path).stem for path in valid]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"data.valid names two files called {twice[0]!r}", "results go by file name: rename one")


def _check_valid(valid: Mapping[str, TokenWindows], wanted: int) -> None:
    for name, windows in valid.items():
        if len(windows) < wanted:
            raise DataError(
                f"evaluation.windows={wanted}, and the text {name!r} has {len(windows)}",
                "lower evaluation.windows (0 takes all), or give more text",
            )


def check_heads(cfg: LlamaConfig, mesh: sharding.AnyMesh) -> None:
    """Raises ModelError where mesh axis "tensor" would cut through a head."""
    pieces = mesh.shape["tensor"]
    if cfg.num_kv_heads % pieces or cfg.num_heads % pieces:
        raise ModelError(
            f"mesh axis 'tensor' of {pieces} cuts through heads ({cfg.num_heads} query, {cfg.num_kv_heads} key-value)",
            "choose a size of mesh.tensor that divides both, or use mesh.fsdp",
        )
