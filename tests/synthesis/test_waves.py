"""Texts of a wave: those that each would be alone, whatever stages, batches and devices they are written in."""

import jax
import numpy as np
import pytest

from lowbit.errors import ConfigError
from lowbit.generation import Sampling
from lowbit.synthesis import Recipe, waves
from lowbit.synthesis.recipe import special_tokens, start_tokens, texts
from lowbit.synthesis.waves import make_teacher, stages, survivors, write

LENGTH = 48


@pytest.fixture(scope="module")
def teacher(generator, tokenizer):
    special = special_tokens(tokenizer, 260, (0,))
    return make_teacher(generator.decoder, generator.weights, special, jax.devices()[:1])


def written(teacher, recipe, first=0, count=16):
    starts = start_tokens(np.asarray(teacher.special), recipe.starts)
    return [row.tolist() for row in write(teacher, recipe, texts(recipe, starts, first, count))]


RECIPE = Recipe(tokens=1, length=LENGTH)


@pytest.fixture(scope="module")
def rows(teacher):
    return written(teacher, RECIPE)


def test_texts_are_drawn_end_at_special_tokens_and_at_the_length(rows, teacher):
    special = np.flatnonzero(np.asarray(teacher.special))
    assert [row[0] for row in rows] == list(range(3, 19))
    assert all(1 <= len(row) <= LENGTH for row in rows)
    assert any(len(row) == LENGTH for row in rows)
    assert any(len(row) < LENGTH for row in rows)
    assert not any(np.isin(row, special).any() for row in rows)


def test_greedy_texts_are_those_of_the_generator(teacher, generator):
    recipe = Recipe(tokens=1, length=LENGTH, greedy=(LENGTH - 1, LENGTH - 1))
    expected = generator.generate([[start] for start in range(3, 19)], LENGTH - 2, stop_tokens=[0, 1, 2]).rows()
    for start, row, rest in zip(range(3, 19), written(teacher, recipe), expected, strict=True):
        assert row[: LENGTH - 1] == [start, *rest]


def test_likeliest_tokens_come_first_up_to_each_texts_own_length(rows, teacher):
    greedy = written(teacher, Recipe(tokens=1, length=LENGTH, greedy=(LENGTH - 1, LENGTH - 1)))
    drawn = 0
    for number, (row, likeliest) in enumerate(zip(rows, greedy, strict=True)):
        length = 3 + number % 3
        assert row[:length] == likeliest[:length]
        drawn += row[length : length + 1] != likeliest[length : length + 1]
    # Draws are among 50 tokens: a few may be the likeliest, and texts that have ended draw none.
    assert drawn > 5


def test_a_text_is_what_it_is_in_another_batch(rows, teacher):
    assert written(teacher, RECIPE, first=5, count=3) == rows[5:8]


def test_other_seeds_other_texts_and_other_passes_too(rows, teacher):
    assert written(teacher, Recipe(tokens=1, length=LENGTH, seed=1)) != rows
    recipe = Recipe(tokens=1, length=LENGTH, starts=4)
    first, second = written(teacher, recipe, 0, 4), written(teacher, recipe, 4, 4)
    assert first == rows[:4]
    assert [row[0] for row in first] == [row[0] for row in second]
    assert first != second


@pytest.mark.parametrize("devices", [1, 2])
def test_stages_smaller_batches_and_devices_change_nothing(rows, teacher, generator, monkeypatch, devices):
    monkeypatch.setattr(waves, "STAGE", 16)
    sizes = []
    advance = waves.advance

    def noted(*arguments):
        sizes.append(arguments[8].newest.shape[0])
        return advance(*arguments)

    monkeypatch.setattr(waves, "advance", noted)
    special = np.asarray(teacher.special)
    several = make_teacher(generator.decoder, generator.weights, special, jax.devices()[:devices])
    assert written(several, RECIPE) == rows
    assert len(sizes) > 3
    assert sizes[-1] < sizes[0] == 16  # texts had ended, and the others moved together


def test_stages_begin_with_the_greedy_tokens_and_end_with_the_length():
    assert stages(Recipe(tokens=1, length=600)) == [5, 256, 512, 600]
    assert stages(Recipe(tokens=1, length=256, greedy=(2, 2))) == [2, 256]
    assert stages(Recipe(tokens=1, length=3, greedy=(1, 2))) == [2, 3]


def test_batches_are_halved_as_long_as_every_device_can_hold_its_texts():
    ended = np.ones((2, 8), bool)
    ended[0, [2, 5]] = False
    ended[1, 7] = False
    assert survivors(ended.reshape(-1), 2, 1).tolist() == [2, 5, 8, 15]
    assert len(survivors(ended.reshape(-1), 2, 8)) == 8
    ended[0, :5] = False
    assert survivors(ended.reshape(-1), 2, 1).tolist() == list(range(16))


def test_programs_are_compiled_once_for_all_waves(teacher, monkeypatch):
    monkeypatch.setattr(waves, "SMALLEST", 1)  # batches stay as they are
    written(teacher, RECIPE)
    before = waves.advance._cache_size()
    written(teacher, Recipe(tokens=1, length=LENGTH, seed=3), first=16)
    assert waves.advance._cache_size() == before


def test_draws_need_no_top_k(teacher):
    recipe = Recipe(tokens=1, length=8, sampling=Sampling(0.7, top_p=0.5))
    assert max(map(len, written(teacher, recipe, count=4))) > 1


def test_ways_to_attend_write_the_same_texts(rows, teacher, generator):
    special, decoder = np.asarray(teacher.special), generator.decoder._replace(attention="sums")
    summing = make_teacher(decoder, generator.weights, special, jax.devices()[:2])
    assert written(summing, RECIPE) == rows


def test_the_kernel_writes_the_same_texts(teacher, wide_generator):
    """Its programs under shard_map, with caches that grow and batches that shrink; a CPU interprets them."""
    recipe, found = Recipe(tokens=1, length=12), []
    for method in ("products", "kernel"):
        decoder = wide_generator.decoder._replace(attention=method)
        writer = make_teacher(decoder, wide_generator.weights, np.asarray(teacher.special), jax.devices()[:2])
        found.append(written(writer, recipe, count=8))
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0]))) == 8


def test_a_cache_that_is_not_for_this_is_refused(teacher, generator):
    special, decoder = np.asarray(teacher.special), generator.decoder
    turned = decoder._replace(cache=decoder.cache._replace(rotated=False))
    with pytest.raises(ConfigError, match="a cache of keys before their rotation"):
        make_teacher(turned, generator.weights, special, jax.devices()[:1])


def test_texts_that_cannot_be_shared_out_are_refused(teacher, generator):
    several = make_teacher(generator.decoder, generator.weights, np.asarray(teacher.special), jax.devices()[:4])
    with pytest.raises(ConfigError, match="a batch of 6 texts on 4 devices\n  -> give a multiple of 4"):
        written(several, RECIPE, count=6)
