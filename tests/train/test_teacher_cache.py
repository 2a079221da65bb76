"""A teacher's cache: written shard by shard, gone on with, read in any order, refused for another run, learned from."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.data import TokenDataset, TokenWindows
from lowbit.distill.cache import Identity, TeacherCache, write_cache
from lowbit.distill.cached import TaughtDataset, untangle
from lowbit.errors import ConfigError, DataError, LockedError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.locks import sole_writer
from lowbit.models import save_hf
from lowbit.train import prepare, run
from lowbit.train.setup import make_lesson
from lowbit.train.teacher_cache import write_lessons
from lowbit.tree import unflatten

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

SIZES = LlamaConfig(64, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64)
IDENTITY = Identity("teacher", "text", length=3, vocab_size=64, k=2, temperature=1.0, separator=None)


def save_random(folder, seed=0):
    rng = np.random.default_rng(seed)
    flat = {path: rng.normal(0.0, 0.3, shape).astype(np.float32) for path, shape in param_shapes(SIZES).items()}
    save_hf(folder, SIZES, unflatten(flat), {}, dtype="float32")
    return str(folder)


def teach(windows):
    """Numbers that say which window they are of."""
    ids = np.broadcast_to(windows[:, None, None] % 64, (len(windows), 3, 2))
    log_probs = np.broadcast_to(-windows[:, None, None] / 8, ids.shape)
    return ids, log_probs, log_probs[..., 0] - 1, 0.25, 0.125


@pytest.fixture
def cache(tmp_path):
    list(write_cache(tmp_path / "cache", IDENTITY, np.arange(0, 20, 2), 4, teach))
    return TeacherCache.open(tmp_path / "cache", verify=True)


def test_a_window_has_its_record_whatever_the_order(cache):
    assert [shard.windows for shard in cache.shards] == [4, 4, 2]
    assert (cache.tail_mass, cache.tail_information) == (0.25, 0.125)
    assert cache.identity.bytes_per_token == 2 * (2 + 2) + 2
    assert cache.nbytes == 10 * 3 * 10
    order = np.array([18, 0, 6, 8])
    rows = cache.rows(order)
    assert rows.shape == (4, 3 * 5)
    tokens, kept = untangle(jnp.asarray(np.concatenate([np.zeros((4, 4), np.int32), rows], axis=1)), 2)
    assert tokens.shape == (4, 4)
    np.testing.assert_array_equal(kept.ids[:, 0, 0], order)
    np.testing.assert_array_equal(kept.log_probs[:, 2, 1], -order / 8)
    np.testing.assert_array_equal(kept.tail[:, 1], -order / 8 - 1)


def test_batches_carry_what_belongs_to_their_windows(tmp_path):
    windows = TokenWindows((np.arange(100, dtype=np.uint16) % 60,), 3)
    list(write_cache(tmp_path / "cache", IDENTITY, np.arange(len(windows)), 10, teach))
    cache = TeacherCache.open(tmp_path / "cache")
    plain = TokenDataset(windows, 4, seed=3)
    taught = TaughtDataset(windows, 4, seed=3, cache=cache)
    shares = [TaughtDataset(windows, 4, 3, None, i, 2, cache=cache) for i in range(2)]
    for step in (0, 1, 7):
        tokens, kept = untangle(jnp.asarray(taught.batch(step)), 2)
        np.testing.assert_array_equal(tokens, plain.batch(step))
        np.testing.assert_array_equal(kept.ids[:, 0, 0], plain.indices(step))
        np.testing.assert_array_equal(np.concatenate([share.batch(step) for share in shares]), taught.batch(step))
    assert taught.fingerprint() != plain.fingerprint()


def test_an_interrupted_cache_goes_on_to_the_same_bytes(tmp_path, cache):
    asked = []

    def counting(windows):
        asked.append(list(windows))
        return teach(windows)

    broken = tmp_path / "broken"
    shutil.copytree(cache.folder, broken)
    for name in ("shard-00001.json", "shard-00001.npy", "cache.json"):
        (broken / name).unlink()
    with pytest.raises(DataError, match=r"broken holds no finished cache of a teacher\n  -> make the cache again"):
        TeacherCache.open(broken)
    list(write_cache(broken, IDENTITY, np.arange(0, 20, 2), 4, counting))
    assert asked == [[8, 10, 12, 14]]
    for file in sorted(path.name for path in cache.folder.iterdir()):
        assert (broken / file).read_bytes() == (cache.folder / file).read_bytes()
    with pytest.raises(DataError, match=r"broken holds another cache: teacher differ\n  -> give another folder"):
        list(write_cache(broken, dataclasses.replace(IDENTITY, teacher="b"), np.arange(0, 20, 2), 4, teach))
    with sole_writer(broken), pytest.raises(LockedError, match="broken is being written by process"):
        list(write_cache(broken, IDENTITY, np.arange(0, 20, 2), 4, teach))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="notes exists and is no cache of a teacher"):
        list(write_cache(tmp_path / "notes", IDENTITY, np.arange(4), 4, teach))


def test_a_cache_of_something_else_is_refused(cache):
    windows = np.arange(0, 20, 2)
    cache.check(dataclasses.replace(IDENTITY, k=7), windows)
    for change, cause in (
        ({"teacher": "other"}, "of another teacher: teacher, and the run has other"),
        ({"text": "other"}, "of another text"),
        ({"vocab_size": 65}, "with another vocabulary: 64, and the run has 65"),
        ({"length": 4}, "of windows of another length"),
        ({"temperature": 2.0}, "at another temperature"),
        ({"separator": 0}, "with documents kept apart in another way"),
    ):
        with pytest.raises(DataError, match=cause):
            cache.check(dataclasses.replace(IDENTITY, **change), windows)
    with pytest.raises(DataError, match=r"lacks 2 of the windows that the run reads, such as 3\n  -> make it for"):
        cache.check(IDENTITY, np.array([0, 3, 5]))
    with pytest.raises(DataError, match=r"64 tokens kept of a vocabulary of 64\n  -> keep at least 1 and at most 63"):
        dataclasses.replace(IDENTITY, k=64)


def test_a_damaged_cache_is_refused(cache):
    place = cache.folder / "shard-00002.npy"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    TeacherCache.open(cache.folder)
    with pytest.raises(DataError, match=r"shard-00002\.npy was changed: its SHA-256 differs"):
        TeacherCache.open(cache.folder, verify=True)
    place.write_bytes(content[:-8])
    with pytest.raises(DataError, match="is damaged"):
        TeacherCache.open(cache.folder)


def test_a_run_learns_from_a_cache_what_it_learns_from_the_teacher(tiny_config, tmp_path):
    source = save_random(tmp_path / "float")
    settings = (f"model.source={source}", "distill.weight=0.5", "distill.temperature=2", "data.valid=")
    settings += ("quant.scale_init=max", "train.tokens=512", "distill.dtype=float32")
    folder = tmp_path / "cache"
    lesson = make_lesson(tiny_config(*settings), 63)
    assert sum(shard.windows for shard in write_lessons(lesson, folder, 8)) == len(lesson.windows)
    live = prepare(tiny_config(*settings))
    cached = prepare(tiny_config(*settings, f"distill.cache={folder}"))
    assert cached.constants == {}
    assert cached.teacher == live.teacher
    state = live.initial_state()
    wanted, parts = jax.jit(live.objective)(state.variables, jnp.asarray(live.train.batch(1)))
    batch = jnp.asarray(cached.train.batch(1))
    got, kept = jax.jit(cached.objective)(cached.initial_state().variables, batch)
    # With 63 of 64 tokens the bucket is one token: what is left is the rounding of log-probabilities to fp16, at most
    # 2^-11 of their size, and these are below 16 here.
    np.testing.assert_allclose(kept["cross_entropy"], parts["cross_entropy"], rtol=1e-5)
    np.testing.assert_allclose(kept["divergence"], parts["divergence"], atol=16 * 2**-11)
    np.testing.assert_allclose(got, wanted, atol=0.5 * 4 * 16 * 2**-11)
    assert run(cached.config).finished

    with pytest.raises(DataError, match="is a cache of another teacher"):
        prepare(tiny_config(*settings, f"distill.cache={folder}", f"distill.teacher={save_random(tmp_path / 'b', 1)}"))
    with pytest.raises(DataError, match=r"lacks \d+ of the windows that the run reads"):
        prepare(tiny_config(*settings, f"distill.cache={folder}", "seed=1"))
    place = folder / "shard-00000.npy"
    place.write_bytes(place.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DataError, match=r"shard-00000\.npy was changed: its SHA-256 differs"):
        prepare(tiny_config(*settings, f"distill.cache={folder}"))


def test_settings_that_a_cache_cannot_serve_are_refused(tiny_config, tmp_path):
    source = save_random(tmp_path / "float")

    def attempt(*settings):
        return prepare(tiny_config(f"model.source={source}", "distill.cache=there", *settings))

    with pytest.raises(ConfigError, match=r"distill\.cache=there, and distill\.weight=0 learns nothing from it"):
        attempt()
    with pytest.raises(ConfigError, match="'reverse' needs the teacher's whole distribution"):
        attempt("distill.weight=1", "distill.divergence=reverse")
    with pytest.raises(ConfigError, match="hidden states or attention are to be matched"):
        attempt("distill.weight=1", "distill.hidden_weight=1")
    with pytest.raises(ConfigError, match=r"unknown distill\.divergence 'back'"):
        attempt("distill.weight=1", "distill.divergence=back")
    with pytest.raises(DataError, match="there holds no finished cache of a teacher"):
        attempt("distill.weight=1")
    with pytest.raises(ConfigError, match=r"distill\.weight=0: the run learns from no teacher's logits"):
        make_lesson(tiny_config(f"model.source={source}"), 4)
    with pytest.raises(ConfigError, match="hidden states or attention are to be matched"):
        make_lesson(tiny_config(f"model.source={source}", "distill.weight=1", "distill.hidden_weight=1"), 4)
    with pytest.raises(ConfigError, match=r"distill\.cache=there is what the run reads"):
        make_lesson(tiny_config(f"model.source={source}", "distill.weight=1", f"distill.cache={Path('there')}"), 4)
