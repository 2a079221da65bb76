"""Configs: one schema, files that fill it in, variants of a file, and overrides from the command line.

    configs/qat_smollm2.py:bits=2,smoke --config.optimizer.learning_rate=1e-3

names a file, two variants that its `get_config` takes, and one override. The result is a locked
`ml_collections.ConfigDict` with exactly the keys of `base()`: whatever is misspelt anywhere is a `ConfigError`.
"""

import ast
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from lowbit.errors import ConfigError, LowbitError, nearest

T = TypeVar("T")


ELEMENTS: dict[str, type] = {
    "model.architecture.eos_token_ids": int,
    "data.train": str,
    "data.valid": str,
    "quant.layer_bits": float,
    "quant.overrides": tuple,
    "optimizer.frozen": str,
}
"""What the tuples of a config hold."""


def base() -> ConfigDict:
    """Returns every setting there is, at its usual value; the comments are the reference."""
    config = ConfigDict(
        {
            "seed": 0,  # below 2**31; of the order of windows, and of the start of a model made from scratch
            "run_folder": "",  # everything a run writes; it must not exist yet
            "model": {
                # Hugging Face folder or hub name, .gguf file, or run folder (the float masters of its newest
                # checkpoint); "" starts `architecture` from scratch
                "source": "",
                # Whether the source's residual stream is turned by a random orthogonal matrix, which changes no logits; a
                # tied model gets a head of its own by it
                "rotate": False,
                "tokenizer": "",  # folder with tokenizer.json; "" takes the source's own
                "compute_dtype": "bfloat16",  # of matrix products; masters are float32 always
                "remat": "dots",  # what is recomputed: "none", "dots" (not matmuls and cuDNN attention), "full"
                "attention": "auto",  # "auto", "xla", "cudnn"
                "architecture": {  # read only where `source` is ""
                    "vocab_size": 4096,
                    "hidden_size": 192,
                    "intermediate_size": 512,
                    "num_layers": 6,
                    "num_heads": 6,
                    "num_kv_heads": 2,
                    "head_dim": 32,
                    "rope_theta": 10_000.0,
                    "rms_norm_eps": 1e-5,
                    "tie_embeddings": True,
                    "qkv_bias": False,
                    "max_positions": 2048,
                    "bos_token_id": 0,
                    "eos_token_ids": (0,),
                },
            },
            "data": {
                "train": (),  # .npy token files and folders that `tokenize` wrote, or texts for the model's tokenizer
                "valid": (),  # the same, each evaluated on its own
                "attend_across_documents": True,  # False: tokens see their own document alone, positions restart in it
                # token between documents, or its id; "" takes what token folders say, or the tokenizer's eos token
                "separator": config_dict.FieldReference("", field_type=object),
            },
            "quant": {
                "method": "paretoq",  # "paretoq", "rtn", "llmqat", "absmean_ternary", "float"
                "bits": 2.0,  # 1, 1.58, 2, 3 or 4; read by methods that come in widths
                "layer_bits": (),  # paretoq: a width a layer, in place of bits; one compiled step serves every choice
                "granularity": config_dict.FieldReference("channel", field_type=object),  # "tensor", or a group size
                "symmetric": True,  # rtn: False is the min-max grid with a zero point
                "variant": "fixed",  # llmqat: "reference" is the reference code, zero gradients at |w| >= 2 included
                "estimator": "clipped",  # paretoq: of the gradient to weights: "clipped", "identity", "dsq"
                "scale_init": "mse",  # "mse", "mean", "max", "reference"; read by paretoq and symmetric rtn
                "scale_dtype": "float16",  # as stored in the packed file
                "float_dtype": "float16",  # stored dtype of what is not quantized
                "overrides": (),  # (path pattern, {key of quant: value}), before the table's own; the first match wins
            },
            "distill": {
                "weight": 0.0,  # share of the divergence from a teacher in the loss, 0 to 1; 0 needs no teacher
                "temperature": 1.0,  # of both distributions in the divergence
                # As model.source, but a run folder teaches what it predicts; "" is the float model that the run, or the
                # chain of runs behind its source, started from
                "teacher": "",
                "dtype": "bfloat16",  # of the teacher's parameters in memory
            },
            "optimizer": {
                "name": "adamw",  # "adamw", or "muon" for the layers' kernels and AdamW for everything else
                "learning_rate": 1e-3,  # the peak
                "b1": 0.9,  # AdamW
                "b2": 0.95,
                "eps": 1e-8,
                "momentum": 0.95,  # Muon
                "weight_decay": 0.0,  # of matrices and embedding
                "scale_learning_rate": 1.0,  # factor on the learning rate, for quantizer scales
                "scale_schedule": "same",  # their shape: "same" as schedule.shape, or "cosine", "linear", "constant"
                "scale_until": 1.0,  # share of the steps after which they stand still
                "clip_norm": 1.0,  # global L2 norm of the gradient; inf clips nothing
                "frozen": (),  # patterns of paths like "params/embed/.*" that stay as they start
            },
            "schedule": {"shape": "cosine", "warmup": 0.05, "final": 0.0},  # shares of the steps, and of the peak
            "train": {
                "tokens": 10_000_000,  # steps = tokens // (batch_size * sequence_length)
                "batch_size": 32,  # sequences a step, over all devices
                "sequence_length": 1024,  # inputs; a window holds one token more
                "accumulate": 1,  # parts that a batch is visited in
                "loss_chunks": 8,  # pieces of a sequence whose logits are in memory at once
            },
            "evaluation": {
                "every_steps": 0,  # 0: at the end alone
                "windows": 128,  # the first so many windows of each file; 0 for all
                "batch_size": 32,
            },
            "checkpoint": {
                "every_steps": 0,  # 0: by time alone
                "every_minutes": 10.0,  # inf: by steps alone
                "keep": 2,
            },
            "log": {
                "every_steps": 10,
                "progress": True,
                "tensorboard": False,
                "recorder_every_steps": 50,  # statistics of codes and scales, and after the last step; 0: never
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # devices along each axis; -1 takes what is left
        }
    )
    return config.lock()


def load(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Returns the locked config that `path/to/file.py[:variants]` and overrides describe.

    Args:
      spec: a Python file that defines `get_config(arg: str)`, and after a colon what to pass it.
      overrides: `a.b=value`, with or without `--config.` in front, applied in order.

    Raises:
      ConfigError: no such file or key or variant, a value of another type, or a file that fails.
    """
    path_text, _, argument = spec.partition(":")
    path = Path(path_text)
    if not path.is_file():
        siblings = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        hint = nearest(path_text, siblings) if siblings else "give the path of a config file, such as configs/x.py"
        raise ConfigError(f"config file {path_text!r} does not exist", hint)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"config file {path_text!r} is not a Python file", "name it something.py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(argument)
    except LowbitError:
        raise
    except Exception as error:  # the file is the user's own code: whatever it raises is a mistake in it
        raise _explained(path_text, error) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config of {path_text!r} returns {_a(type(config).__name__)}", "return base(), with changes"
        )
    _check_keys(config, path_text)
    override(config, overrides)
    return config.lock()


def shrink(config: ConfigDict) -> ConfigDict:
    """Returns the config cut down to two steps of a tiny model from scratch: what the variant `smoke` means.

    Data, quantization, optimizer and schedule stay, as does the vocabulary, so that the run's own token files fit. There
    is neither a teacher nor a rotation: both need a model to start from.
    """
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "head_dim": 8}
    config.model.architecture.update({**sizes, "num_heads": 4, "num_kv_heads": 2, "max_positions": 64})
    config.model.source = ""
    config.model.rotate = False
    config.distill.weight = 0.0
    config.train.update({"tokens": 512, "batch_size": 8, "sequence_length": 32, "accumulate": 1, "loss_chunks": 2})
    config.evaluation.update({"every_steps": 0, "windows": 8, "batch_size": 8})
    config.log.every_steps = 1
    config.log.recorder_every_steps = 0  # compiling it takes longer than the steps
    return config


def variants(argument: str, **defaults: Any) -> ConfigDict:
    """Returns the variants that follow a config's colon, each of its default's type: `bits=2,smoke`.

    A boolean may stand alone for `=true`.

    Raises:
      ConfigError: an unknown variant, or a value of another type.
    """
    chosen = ConfigDict(defaults).lock()
    for part in filter(None, (piece.strip() for piece in argument.split(","))):
        name, equals, text = part.partition("=")
        if name not in defaults:
            raise ConfigError(f"unknown config variant {name!r}", nearest(name, defaults))
        if not equals and not isinstance(defaults[name], bool):
            raise ConfigError(f"config variant {name!r} has no value", f"write {name}={defaults[name]}")
        chosen[name] = parse(text if equals else "true", type(defaults[name]), f"variant {name}")
    return chosen


def choose(name: str, value: Any, table: Mapping[Any, T]) -> T:
    """Returns table[value]; raises ConfigError that names the nearest key."""
    if value not in table:
        raise ConfigError(
            f"no {name} {value:g}" if isinstance(value, float) else f"no {name} {value!r}",
            nearest(f"{value:g}" if isinstance(value, float) else str(value), map(str, table)),
        )
    return table[value]


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
    """Applies `a.b=value` (or `--config.a.b=value`) to a config in place.

    Raises:
      ConfigError: no `=`, an unknown key, a key that is a section, or a value of another type.
    """
    for assignment in assignments:
        key, equals, text = assignment.removeprefix("--").removeprefix("config.").partition("=")
        if not equals:
            raise ConfigError(f"override {assignment!r} sets nothing", "write --config.section.key=value")
        known = dict(_leaves(config))
        if key not in known:
            section = isinstance(_at(config, key), ConfigDict)
            inside = [name for name in known if name.startswith(key + ".")] if section else list(known)
            cause = f"config key {key!r} is a section" if section else f"unknown config key {key!r}"
            raise ConfigError(cause, nearest(key, inside))
        *sections, last = key.split(".")
        place = config
        for section_name in sections:
            place = place[section_name]
        place[last] = parse(text, place.get_type(last), f"config key {key}", ELEMENTS.get(key, str))


def parse(text: str, kind: type, what: str, element: type = str) -> Any:
    """Returns `text` as a bool, int, float, str, tuple (commas between its parts) or, for object, an int or str.

    An int may be written as 1e7 or 10_000_000. A tuple's parts are read as `element` each; in brackets, it is Python's.

    Raises:
      ConfigError: the text is no such value; `what` says where it stood.
    """
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return _integer(text)
        if kind is float:
            value = float(text)
            if math.isnan(value):
                raise ValueError
            return value
        if kind is tuple:
            return _tuple(text, what, element)
        if kind is object:
            return int(text) if text.isdecimal() else text
        return str(text)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        cause = f"{what} is {_a(kind.__name__)}, which {text!r:.80} is not"
        mends: dict[Any, str] = {
            bool: "write true or false",
            tuple: 'write a,b or (1, 2), with a comma after a single part: ("a",)',
        }
        raise ConfigError(cause, mends.get(kind, f"give {_a(kind.__name__)}")) from error


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


def _tuple(text: str, what: str, element: type) -> tuple[Any, ...]:
    if not text.startswith("("):
        if element is tuple and text:
            raise ValueError(f"{text!r} is no tuple of tuples")
        return tuple(parse(part, element, f"each part of {what}") for part in text.split(",") if part)
    value = ast.literal_eval(text)
    if not isinstance(value, tuple):
        raise ValueError(f"{value!r} is no tuple")
    return value


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def steps(config: ConfigDict) -> int:
    """Returns how many optimizer steps `train.tokens` make; raises ConfigError where it is none."""
    per_step = config.train.batch_size * config.train.sequence_length
    if config.train.tokens < per_step:
        raise ConfigError(
            f"train.tokens={config.train.tokens} is less than one step of {per_step} tokens",
            "raise train.tokens, or lower train.batch_size or train.sequence_length",
        )
    return int(config.train.tokens // per_step)


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON with sorted keys; `from_json` is its inverse.

    JSON has no infinity: it is written as the string "inf".
    """
    return json.dumps(_spelt(config.to_dict()), indent=2, sort_keys=True, allow_nan=False)


def from_json(text: str, place: str) -> ConfigDict:
    """Returns the config that `to_json` wrote.

    Raises:
      ConfigError: no JSON, or keys other than those of `base()`; `place` says where the text stood.
    """
    mend = "use the version of lowbit that wrote it"
    try:
        values = dict(_flat(json.loads(text)))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{place} holds no config", mend) from error
    config = base()
    unlike = sorted(values.keys() ^ dict(_leaves(config)).keys())
    if unlike:
        raise ConfigError(f"{place} and this version's configs differ in the keys {', '.join(unlike)}", mend)
    floats = {key for key, value in _leaves(config) if isinstance(value, float)}
    try:
        for key, value in values.items():
            values[key] = float(value) if key in floats and isinstance(value, str) else _tuples(value)
        config.update_from_flattened_dict(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place} holds a value of another type: {error}", mend) from error
    return config


def differences(a: ConfigDict, b: ConfigDict) -> list[str]:
    """Returns the keys, such as "quant.bits", at which two configs of the same schema differ."""
    left, right = dict(_leaves(a)), dict(_leaves(b))
    return sorted(key for key in left.keys() | right.keys() if _tuples(left[key]) != _tuples(right[key]))


def _leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    return _flat(config.to_dict())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _spelt(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _spelt(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(inner) for inner in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _tuples(value: Any) -> Any:
    """JSON knows lists only; configs hold tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _at(config: ConfigDict, key: str) -> Any:
    place: Any = config
    for name in key.split("."):
        if not isinstance(place, ConfigDict) or name not in place:
            return None
        place = place[name]
    return place


def _check_keys(config: ConfigDict, place: str) -> None:
    own, known = dict(_leaves(config)), dict(_leaves(base()))
    unknown, missing = sorted(own.keys() - known.keys()), sorted(known.keys() - own.keys())
    if unknown:
        raise ConfigError(f"{place} sets an unknown key {unknown[0]!r}", nearest(unknown[0], known))
    if missing:
        raise ConfigError(f"{place} leaves out the key {missing[0]!r}", "start from base() and change what differs")


def _explained(path: str, error: Exception) -> ConfigError:
    misspelt = re.search(r'Key "(\w+)" does not exist|instead of "(\w+)"', str(error))
    if misspelt:
        name = misspelt[1] or misspelt[2]
        names = {part for key, _ in _leaves(base()) for part in key.split(".")}
        return ConfigError(f"{path} sets an unknown key {name!r}", nearest(name, names))
    if "get_config" in str(error):
        return ConfigError(f"{path} defines no get_config(arg)", "define get_config(arg: str) -> ConfigDict in it")
    return ConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}", "mend the config file")
