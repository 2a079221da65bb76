"""`generate --backend jax`: a packed file, a run or a float model, on whatever device jax has."""

import argparse
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from lowbit.cli.generate import Writer
from lowbit.cli.generate_command import KV_CACHES
from lowbit.cli.packed_file import open_model
from lowbit.cli.sources import kind_of
from lowbit.cli.usage import UsageError
from lowbit.export.packed import unpack_params
from lowbit.formats import PackedModel
from lowbit.generation import Generator
from lowbit.generation.loop import NO_TOKEN
from lowbit.kernels import Sampling, Tokenizer, prompt_tokens
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, LlamaConfig
from lowbit.llama.activations import Ranges, from_meta
from lowbit.models import pretrained
from lowbit.tree import unflatten
from lowbit.tree.paths import Tree


def writer(arguments: argparse.Namespace) -> Writer:
    """Returns the model that SOURCE and the flags describe, its programs compiled for the prompt.

    Raises:
      LowbitError: the source cannot be read or run, or a flag does not fit it.
    """
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    generator, files = _generator(arguments)
    cfg = generator.decoder.cfg
    tokenizer = Tokenizer(PackedModel({}, cfg.to_hf(), dict(files)))

    def stream(prompt: list[int]) -> Iterator[int]:
        chosen = generator.stream([prompt], arguments.tokens, sampling=sampling, seeds=[arguments.seed])
        return (int(token) for (token,) in chosen if token != NO_TOKEN)

    def whole(prompt: list[int]) -> Iterator[int]:
        made = generator.generate([prompt], arguments.tokens, sampling=sampling, seeds=[arguments.seed])
        return iter(made.rows()[0])

    generate = whole if arguments.no_stream else stream

    def encode(text: str) -> list[int]:
        prompt = prompt_tokens(tokenizer, text, cfg)
        # Compiling takes seconds that are none of the model's speed: the programs run once before the clock does.
        for _ in zip(range(2), generate(prompt), strict=False):
            pass
        return prompt

    return Writer(encode, generate, tokenizer.stream, not arguments.no_stream, f"jax on {jax.default_backend()}")


def cache_name(kv_bits: str | None, rounding: ActivationRounding, dtype: str) -> str | None:
    """Returns the kind that `--kv-bits` asks for; without it None, for the one a model was made for, or `dtype`."""
    if kv_bits is None and rounding.cache is not None:
        return None
    return KV_CACHES[kv_bits or str(8 * jnp.dtype(dtype).itemsize)]


def _generator(arguments: argparse.Namespace) -> tuple[Generator, Mapping[str, bytes]]:
    """The model, and the files of its tokenizer."""
    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")

    params: Tree
    files: Mapping[str, bytes]
    if kind_of(arguments.source) == "packed":
        packed, cfg = open_model(arguments.source, verify=arguments.verify)
        rounding, ranges = from_meta(packed.meta, cfg)
        cache = cache_name(arguments.kv_bits, rounding, dtype)
        if arguments.storage != "float32":
            activations = arguments.activations or "float32"
            generator = Generator.from_packed(packed, dtype=dtype, cache=cache, activations=activations)
            return generator, packed.tokenizer
        if arguments.activations == "int8":
            raise UsageError("--activations int8 needs the codes of the file", "leave out --storage")
        params, files = unflatten(unpack_params(cfg, packed)), packed.tokenizer
    else:
        for name in ("storage", "activations"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is for packed files, and {arguments.source} is none", f"leave out --{name}")
        cfg, params, files, rounding, ranges = _floats(arguments)
        cache = cache_name(arguments.kv_bits, rounding, dtype)
    generator = Generator.from_params(cfg, params, dtype=dtype, cache=cache, rounding=rounding, ranges=ranges)
    return generator, files


def _floats(
    arguments: argparse.Namespace,
) -> tuple[LlamaConfig, Tree, Mapping[str, bytes], ActivationRounding, Ranges]:
    """A run's newest checkpoint, as its packed file would decode it, or a float model as it is."""
    if not arguments.verify:
        raise UsageError(f"--no-verify is for packed files, and {arguments.source} is none", "leave it out")
    if kind_of(arguments.source) == "run":
        from lowbit.cli import quantized

        run = quantized.from_run(arguments.source)
        return run.cfg, run.decoded(), run.tokenizer_files, run.rounding, run.ranges
    loaded = pretrained.load(arguments.source)
    return loaded.cfg, loaded.params, loaded.tokenizer_files, FLOAT_ACTIVATIONS, {}
