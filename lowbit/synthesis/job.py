"""From a teacher to a folder of token shards that training reads, in a way that survives being killed.

Texts are a pure function of the recipe, and which are kept of the texts before them: a job that goes on where its last
shard ended reads from the shards what was kept, and writes the wave that it was killed in again.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lowbit.data import Manifest, TextTokenizer
from lowbit.data.jobs import Job, check_folder
from lowbit.data.shards import Place, ShardWriter, Written, token_dtype
from lowbit.data.tokenization import SHARD_TOKENS
from lowbit.data.tokens import map_tokens
from lowbit.errors import DataError, TokenizerError
from lowbit.generation import Generator
from lowbit.llama.activations import to_meta
from lowbit.locks import sole_writer
from lowbit.synthesis.duplicates import Duplicates
from lowbit.synthesis.filters import REASONS, Filters
from lowbit.synthesis.recipe import Recipe, special_tokens, start_tokens, texts
from lowbit.synthesis.waves import Teacher, check_batch, make_teacher, write
from lowbit.tree import flatten
from lowbit.version import __version__

PART = "all"
PATIENCE = 4096
"""Texts left out in a row after which nothing more is expected."""
FIRST_TEXTS = 128
"""The same where nothing is drawn, and of a job's first texts where all repeat themselves or each other: a teacher of
which one text in twenty is kept is stopped in one of 700 jobs."""
REPEATING = {"repeated", "compressible", "duplicate", "near_duplicate"}


class Progress(NamedTuple):
    """How far a job is.

    Attributes:
      kept: tokens in the folder and on their way there, separators included.
      wanted: tokens.
      made: tokens written by this process, kept or not.
      new: tokens kept by this process.
      texts: written so far, by whatever process.
      dropped: of these, by reason.
      seconds: that the teacher took in this process, compilation included.
    """

    kept: int
    wanted: int
    made: int
    new: int
    texts: int
    dropped: dict[str, int]
    seconds: float


def synthesize(
    generator: Generator,
    tokenizer: TextTokenizer,
    folder: Path,
    recipe: Recipe,
    filters: Filters,
    *,
    teacher: dict[str, Any],
    shard_tokens: int = SHARD_TOKENS,
    devices: Sequence[Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Lets a model write training text, or goes on where the same job was stopped.

    Args:
      generator: decoder and weights of the model.
      tokenizer: the model's; its separator stands behind every text.
      folder: made if need be.
      recipe: what is written.
      filters: what of it is kept.
      teacher: names the model in the manifest, such as its source and a hash of its weights.
      shard_tokens: of every shard but the last.
      devices: that share the texts of a batch; None takes all of this process.
      report: called after each batch.

    Raises:
      DataError: texts longer than the model has positions, more start tokens than there are, a folder of something
        else or of another job, no text that is kept, or a full disk.
      LockedError: another process is writing to the folder.
      TokenizerError: a tokenizer of another vocabulary than the model's.
      ConfigError: a batch that the devices cannot share evenly, or a cache that is not for this.
    """
    cfg = generator.decoder.cfg
    if recipe.length > cfg.max_positions:
        raise DataError(
            f"texts of {recipe.length} tokens do not fit the model's {cfg.max_positions} positions",
            f"ask for a length of {cfg.max_positions} or less",
        )
    if tokenizer.vocab_size != cfg.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the teacher's vocabulary {cfg.vocab_size:,}",
            "use the tokenizer that was saved with the teacher",
        )
    special = special_tokens(tokenizer, cfg.vocab_size, cfg.eos_token_ids)
    starts = start_tokens(special, recipe.starts)
    on = list(devices) if devices is not None else jax.local_devices()
    writer = make_teacher(generator.decoder, generator.weights, special, on)
    check_batch(writer, recipe.batch)
    check_folder(folder)
    identity: dict[str, Any] = {
        "tokenizer": tokenizer.fingerprint(),
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "options": {
            "recipe": recipe.identity(),
            "filters": vars(filters),
            "shard_tokens": shard_tokens,
            # Another device, or number of them, or another compiler, sums in another order: other bytes.
            "computed": {
                "dtype": generator.decoder.dtype,
                "cache": generator.decoder.cache._asdict(),
                "activations": _activations(generator),
                "attention": generator.decoder.attention,
                "jax": jax.__version__,
                "devices": f"{len(on)} x {on[0].device_kind}",
            },
        },
        "sources": [{"synthetic": True, **teacher}],
        "lowbit_version": __version__,
    }
    job = Job(folder, identity, {PART: folder})
    with sole_writer(folder):
        written, notes = job.begin()
        shards = ShardWriter(folder, shard_tokens, token_dtype(tokenizer.vocab_size), written[PART])
        keeper = _Keeper(tokenizer, filters, shards, recipe, Counter(notes))

        def save() -> None:
            job.save({PART: shards}, keeper.dropped)

        save()  # from now on the folder is known for what it is
        last = _keep_all(writer, recipe, starts, keeper, save, report)
        shards.close(Place(0, last + 1))
        save()
        counts = {"texts": last + 1, "dropped": {reason: keeper.dropped[reason] for reason in REASONS}}
        job.finish({PART: shards}, [identity["sources"][0] | counts])
    return Manifest.read(folder)


def _activations(generator: Generator) -> dict[str, str]:
    """How the teacher rounds inputs, in words, and a hash of all of it, calibrated ranges included."""
    rounding, ranges = generator.decoder.rounding, dict[str, dict[str, NDArray[np.float32]]]()
    for path, leaf in flatten(generator.weights.layers["grid"]).items():
        linear, _, key = path.rsplit("/", 2)
        ranges.setdefault(linear, {})[key] = np.asarray(leaf)
    record = json.dumps([generator.decoder.activations, to_meta(rounding, ranges)], sort_keys=True)
    digest = hashlib.blake2b(record.encode(), digest_size=16).hexdigest()
    return {"rounded": rounding.described(), "fingerprint": digest}


class _Keeper:
    """Judges texts in their order, and puts those that are kept into shards."""

    def __init__(
        self, tokenizer: TextTokenizer, filters: Filters, shards: ShardWriter, recipe: Recipe, dropped: Counter[str]
    ):
        self.shards, self.wanted, self.dropped = shards, recipe.tokens, dropped
        self._draws = recipe.sampling.temperature > 0
        self._tokenizer, self._filters = tokenizer, filters
        self._seen = Duplicates(filters.near_duplicates)
        for tokens in finished_texts(shards.folder, shards.written, tokenizer.separator):
            self._seen.add(tokens)
        self.before = self.kept = shards.written.tokens - shards.written.offset
        self._streak: Counter[str] = Counter()  # of texts left out since the last that was kept

    @property
    def done(self) -> bool:
        """Whether there are as many tokens as are wanted."""
        return self.kept >= self.wanted

    def judge(self, number: int, tokens: NDArray[np.int32]) -> bool:
        """Takes the next text; returns whether a shard was finished by it."""
        content = self._tokenizer.decode(tokens).encode()
        reason = self._filters.reason(tokens, content, self._seen)
        if reason is not None:
            self.dropped[reason] += 1
            self._streak[reason] += 1
            self._check_yield()
            return False
        self._streak.clear()
        self.kept += len(tokens) + 1
        ended = np.append(tokens, self._tokenizer.separator).astype(np.uint32)
        return self.shards.append(Place(0, number), len(content), ended)

    def _check_yield(self) -> None:
        count = self._streak.total()
        in_circles = not self._draws or (not self.kept and self._streak.keys() <= REPEATING)
        if count >= FIRST_TEXTS and in_circles:
            counts = ", ".join(f"{name} {number:,}" for name, number in self._streak.items())
            raise DataError(
                f"an empty generation: {count:,} texts in a row were left out ({counts})",
                "draw at a higher temperature (0 takes the likeliest token always, and runs in circles), or take "
                "another teacher",
            )
        if count >= PATIENCE:
            counts = ", ".join(f"{name} {number:,}" for name, number in self.dropped.items())
            raise DataError(
                f"an empty generation: the last {count:,} texts were all left out (so far: {counts})",
                "loosen the filters, draw at another temperature, or take a teacher that was trained",
            )


def _keep_all(
    teacher: Teacher,
    recipe: Recipe,
    starts: Sequence[int],
    keeper: _Keeper,
    save: Callable[[], None],
    report: Callable[[Progress], None],
) -> int:
    """Writes and judges waves until there is enough; returns the number of the last text."""
    number = keeper.shards.written.place.document
    if keeper.done:  # all but the manifest was there
        return number - 1
    first = number - number % recipe.batch
    made, seconds = 0, 0.0

    def wave(first: int) -> tuple[list[NDArray[np.int32]], float]:
        began = time.monotonic()
        rows = write(teacher, recipe, texts(recipe, starts, first, recipe.batch))
        return rows, time.monotonic() - began

    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(wave, first)
        while not keeper.done:
            rows, took = coming.result()
            made, seconds = made + sum(map(len, rows)), seconds + took
            # The devices go on while the host judges, unless what is here may be enough.
            enough = keeper.kept + sum(len(tokens) + 1 for tokens in rows[number - first :]) >= keeper.wanted
            if not enough:
                coming = ahead.submit(wave, first + recipe.batch)
            for place in range(number - first, len(rows)):
                number, tokens = first + place, rows[place]
                if keeper.judge(number, tokens):
                    save()
                if keeper.done:
                    break
            new = keeper.kept - keeper.before
            report(Progress(keeper.kept, keeper.wanted, made, new, number + 1, dict(keeper.dropped), seconds))
            if not keeper.done:
                if not recipe.sampling.temperature and first + recipe.batch >= len(starts):
                    raise DataError(
                        f"the likeliest tokens behind each of the {len(starts):,} start tokens are written, and come "
                        f"to {keeper.kept:,} of {keeper.wanted:,} tokens",
                        "draw (a temperature above 0): further texts would be the same again",
                    )
                first += recipe.batch
                number = first
                if enough:
                    coming = ahead.submit(wave, first)
    return number


def finished_texts(folder: Path, written: Written, separator: int) -> Iterator[NDArray[np.int32]]:
    """Yields the texts that end in the finished shards of a folder, without their separators."""
    rest = np.zeros(0, np.int32)
    for shard in written.shards:
        tokens = np.concatenate([rest, np.asarray(map_tokens(folder / shard.file)).astype(np.int32)])
        *whole, rest = np.split(tokens, np.flatnonzero(tokens == separator) + 1)
        yield from (text[:-1] for text in whole)
