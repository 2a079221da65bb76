"""The teacher that the section `distill` of a config names: found, checked against the student, and known again."""

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lowbit.config import ConfigDict
from lowbit.distill.cached import check_needs_no_teacher
from lowbit.distill.losses import DIVERGENCES
from lowbit.distill.objectives import Mix
from lowbit.errors import ConfigError, ModelError, TokenizerError, nearest
from lowbit.llama import LlamaConfig
from lowbit.models.pretrained import Pretrained
from lowbit.train.sources import check_float_activations, float_origin, load_as_it_predicts, load_masters, turns
from lowbit.train.state import Tree
from lowbit.tree import flatten, unflatten

DTYPES = ("float32", "bfloat16", "float16")


class Teacher(NamedTuple):
    """A float model whose logits a student learns from.

    Attributes:
      cfg: its sizes.
      params: its parameters, numpy; norms in float32, everything else in `distill.dtype`.
      fingerprint: of shapes, dtypes and values: what a resumed run is held to.
    """

    cfg: LlamaConfig
    params: Tree
    fingerprint: str


def make_mix(config: ConfigDict) -> Mix:
    """Returns the losses of the section `distill`; raises ConfigError for a number out of its range."""
    settings = config.distill
    return Mix(
        settings.weight,
        settings.temperature,
        settings.divergence,
        settings.hidden_weight,
        settings.attention_weight,
        settings.attention_layer,
    )


def asks_for_teacher(config: ConfigDict) -> bool:
    """Whether a loss of the section `distill` has a weight."""
    settings = config.distill
    return bool(settings.weight or settings.hidden_weight or settings.attention_weight)


def check_distill(config: ConfigDict) -> None:
    """Refuses a section `distill` that cannot be, before anything is loaded.

    Raises:
      ConfigError: an unknown dtype or divergence, a teacher left to the start of a run that starts from scratch, or
        hidden states to be matched with those of a model that is turned.
    """
    settings = config.distill
    if settings.dtype not in DTYPES:
        raise ConfigError(f"unknown distill.dtype {settings.dtype!r}", nearest(settings.dtype, DTYPES))
    if settings.divergence not in DIVERGENCES:
        raise ConfigError(
            f"unknown distill.divergence {settings.divergence!r}", nearest(settings.divergence, DIVERGENCES)
        )
    if settings.hidden_weight and config.model.rotate:
        raise ConfigError(
            f"distill.hidden_weight={settings.hidden_weight:g} compares hidden states with the teacher's, and "
            "model.rotate turns the student's alone",
            "set distill.hidden_weight=0, or leave model.rotate out",
        )
    if settings.cache:
        if not settings.weight:
            raise ConfigError(
                f"distill.cache={settings.cache}, and distill.weight=0 learns nothing from it", "set distill.weight"
            )
        check_needs_no_teacher(make_mix(config))
    if asks_for_teacher(config) and not settings.teacher and not config.model.source:
        raise ConfigError(
            f"distill.weight={settings.weight}, and a run from scratch starts from no model to learn from",
            "name a teacher (distill.teacher), or a start (model.source), or set the weights of distill to 0",
        )


def load_teacher(config: ConfigDict, student: Pretrained | None) -> Teacher:
    """Returns the teacher of a config.

    `distill.teacher` is a run folder, which teaches what it predicts, quantizers included, or what
    `lowbit.models.pretrained.load` takes; "" is the float model that the student, or the chain of runs behind it,
    started from.

    Args:
      config: whose section `distill` has a weight above 0.
      student: what `model.source` holds; None for a run from scratch.

    Raises:
      ConfigError: hidden states are to be matched, and the student's or the teacher's were turned on their way here;
        the teacher's activations are rounded; or as `float_origin`.
      ModelError: the teacher's vocabulary has another size, or fewer positions than a training sequence.
      TokenizerError: both have a tokenizer, and a token is not the same in both.
      LowbitError: the teacher cannot be loaded.
    """
    settings = config.distill
    name = settings.teacher or float_origin(config.model.source)
    if settings.hidden_weight and config.model.source and turns(config.model.source) != turns(name):
        raise ConfigError(
            f"distill.hidden_weight={settings.hidden_weight:g} compares hidden states, and model.rotate turned those "
            f"of only one of {config.model.source} and the teacher {name}, or each in another way",
            "set distill.hidden_weight=0, or start from and learn from models that were turned alike",
        )
    if settings.teacher:
        loaded = load_as_it_predicts(name)
    else:
        check_float_activations(name)
        loaded = student if student is not None and name == config.model.source else load_masters(name)
    if student is not None:
        _check_vocabulary(name, loaded, student)
    if config.train.sequence_length > loaded.cfg.max_positions:
        raise ModelError(
            f"the teacher {name} has {loaded.cfg.max_positions} positions, "
            f"and train.sequence_length is {config.train.sequence_length}",
            "shorten the sequences, or choose another distill.teacher",
        )
    params = {path: _kept(path, leaf, settings.dtype) for path, leaf in flatten(loaded.params).items()}
    return Teacher(loaded.cfg, unflatten(params), fingerprint(params))


def fingerprint(params: Mapping[str, np.ndarray]) -> str:
    """Returns a hash of the paths, shapes, dtypes and values of `{path: array}`, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in sorted(params.items()):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}\n".encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def kept_dtype(path: str, dtype: str) -> jnp.dtype:
    """Returns in which dtype the parameter at `path` is held where `distill.dtype` is `dtype`."""
    # Norms are computed in float32, and are too small to be worth a rounding.
    return jnp.dtype(jnp.float32 if path.endswith("norm/scale") else dtype)


def _kept(path: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(leaf, kept_dtype(path, dtype))


def _check_vocabulary(name: str, teacher: Pretrained, student: Pretrained) -> None:
    mend = "choose a teacher with the student's tokenizer: its logits are compared token by token"
    if teacher.cfg.vocab_size != student.cfg.vocab_size:
        raise ModelError(
            f"the teacher {name} has a vocabulary of {teacher.cfg.vocab_size:,} tokens, "
            f"the student one of {student.cfg.vocab_size:,}",
            mend,
        )
    theirs, own = _tokens(teacher.tokenizer_files), _tokens(student.tokenizer_files)
    for token, index in theirs.items():
        if own.setdefault(token, index) != index:
            raise TokenizerError(
                f"{token!r} is token {index:,} of the teacher {name}, and token {own[token]:,} of the student", mend
            )


def _tokens(files: Mapping[str, bytes]) -> dict[str, int]:
    """The ids of a tokenizer.json by token, without what was added to its model; {} where there is none."""
    if "tokenizer.json" not in files:
        return {}
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {token: index for index, (token, _) in enumerate(vocabulary)}
