"""`verify`: is the packed file the model it was made from?"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowbit import config as configs
from lowbit.cli import quantized
from lowbit.cli.origin import KEY, Origin, read_origin
from lowbit.cli.packed_file import open_model
from lowbit.cli.quantized import Quantized
from lowbit.cli.run_steps import checkpoint_steps
from lowbit.cli.sources import kind_of
from lowbit.cli.usage import UsageError
from lowbit.errors import LowbitError
from lowbit.export import verify
from lowbit.formats import PackedModel
from lowbit.kernels import Tokenizer
from lowbit.llama import LlamaConfig
from lowbit.llama.activations import META_KEY, from_meta, to_meta

DIFFERENT = 1


def run(arguments: argparse.Namespace) -> int:
    """Compares, prints what was found, and returns 1 for another model."""
    packed, cfg = open_model(arguments.packed)
    tokens = _tokens(arguments, packed, cfg)
    model = _other_side(arguments, packed)
    _check_same_architecture(arguments.packed, cfg, model)
    print(f"{arguments.packed} against {model.origin.described()}")
    note = _note_on_steps(packed, model.origin)
    if note is not None:
        print(note)
    print("checksums all equal")
    result = verify(packed, model.cfg, model.params, model.rules, model.state, tokens)
    print(result)
    return 0 if _same_activations(packed, cfg, model) and result.ok else DIFFERENT


def _same_activations(packed: PackedModel, cfg: LlamaConfig, model: Quantized) -> bool:
    """Whether nothing is known to round activations otherwise than the file; prints what was compared."""
    rounding, _ = from_meta(packed.meta, cfg)
    if model.origin.kind == "pretrained":
        # A float model rounds nothing, and the flags that the export was given are nowhere but in the record itself.
        if rounding:
            print(f"activations {rounding.described()}: not compared, as the file alone says how")
        return True
    if not rounding and not model.rounding:
        return True
    same = packed.meta.get(META_KEY) == to_meta(model.rounding, model.ranges).get(META_KEY)
    print(
        f"activations {rounding.described()}"
        + (": as trained" if same else f", and {model.origin.path} has {model.rounding.described()}: NOT as trained")
    )
    return same


def _other_side(arguments: argparse.Namespace, packed: PackedModel) -> Quantized:
    against = arguments.against
    if against is None:
        origin = read_origin(packed.meta, arguments.packed)
        if origin.kind == "pretrained":
            _check_settings(arguments.packed, origin)
        try:
            return _restored(origin)
        except LowbitError as error:
            raise UsageError(
                f"{arguments.packed} was made from {origin.path}, which cannot be read from here: {error.cause}",
                "name the run or the model it was made from: --against SOURCE",
            ) from error
    match kind_of(against):
        case "run":
            return _run_at(against, _step(packed), _is_base(packed))
        case "pretrained":
            # Rounding leaves no trace but the settings in the file.
            origin = read_origin(packed.meta, arguments.packed)
            _check_settings(arguments.packed, origin)
            return _restored(dataclasses.replace(origin, kind="pretrained", path=against))
        case "packed":
            raise UsageError(f"--against {against} is a packed file", "name the run or the model it was made from")


def _check_settings(path: str, origin: Origin) -> None:
    """Rounding anew needs every setting; what an older lowbit meant by one that it lacked is not guessed."""
    odd = configs.base().quant.keys() ^ origin.quant.keys()
    if odd:
        raise UsageError(
            f"{path} was rounded by lowbit {origin.lowbit_version} with other settings than this one has: "
            + ", ".join(sorted(odd)),
            "export it again",
        )


def _restored(origin: Origin) -> Quantized:
    """Makes again what a packed file was made from."""
    if origin.kind != "pretrained":
        return _run_at(origin.path, origin.step, origin.kind == "base")
    return quantized.from_pretrained(origin.path, origin.quant)


def _run_at(folder: str, step: int | None, base: bool) -> Quantized:
    """The checkpoint that a file is of, while the run keeps it, else its newest; of a base, without its adapters."""
    kept = checkpoint_steps(Path(folder).expanduser())
    model = quantized.from_run(folder, step if step in kept else None)
    return model.without_adapters() if base else model


def _is_base(packed: PackedModel) -> bool:
    """Whether a packed model says that it is a run without its adapters."""
    origin = packed.meta.get(KEY)
    return isinstance(origin, dict) and origin.get("kind") == "base"


def _step(packed: PackedModel) -> int | None:
    """The step that a packed file is of; None for one that is of no run, or does not say."""
    origin = packed.meta.get(KEY)
    return origin.get("step") if isinstance(origin, dict) else None


def _note_on_steps(packed: PackedModel, other: Origin) -> str | None:
    """What to know of a run that went on after the export."""
    step = _step(packed)
    if other.kind == "pretrained" or step is None:
        return None
    if other.step != step:
        return f"the file is of step {step}, of which the run has no checkpoint; its newest is of step {other.step}"
    newest = checkpoint_steps(Path(other.path).expanduser())[-1]
    return None if newest == step else f"the run has gone on since: its newest checkpoint is of step {newest}"


def _check_same_architecture(path: str, cfg: LlamaConfig, model: Quantized) -> None:
    # Through the file's own form, which leaves out nothing that the model depends on.
    theirs = dataclasses.asdict(LlamaConfig.from_hf(model.cfg.to_hf()))
    ours = dataclasses.asdict(cfg)
    odd = [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if odd:
        raise UsageError(
            f"{path} and {model.origin.path} are of two architectures: {', '.join(odd)}",
            "name the run or the model it was made from: --against SOURCE",
        )


def _tokens(arguments: argparse.Namespace, packed: PackedModel, cfg: LlamaConfig) -> NDArray[np.int64]:
    """Tokens i64[1 t] to compare logits at."""
    if arguments.text is not None:
        tokens = np.asarray(Tokenizer(packed).encode(arguments.text), np.int64)[None]
    else:
        tokens = np.random.default_rng(arguments.seed).integers(0, cfg.vocab_size, (1, arguments.tokens))
    if not 1 <= tokens.size <= cfg.max_positions:
        raise UsageError(
            f"{tokens.size} tokens to compare logits at, and the model has {cfg.max_positions} positions",
            f"ask for 1 to {cfg.max_positions} tokens",
        )
    return tokens
