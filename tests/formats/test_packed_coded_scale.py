"""Scales that a packed file holds as codes: stored, decoded, counted, and refused where they do not fit."""

import dataclasses

import numpy as np
import pytest

from lowbit import formats
from lowbit.errors import FormatError
from lowbit.formats import Adapter, CodedScale, PackedModel, PackedTensor

K, N, GROUPS = 12, 90, 4
"""360 scales: one block of 256, and a part of another."""
LEVELS = np.array([-1.0, -0.3, 0.4, 1.0], np.float32)


def make_coded(n=N, groups=GROUPS):
    rng = np.random.default_rng(1)
    codes = rng.integers(1, 256, (n, groups)).astype(np.uint8)
    steps = np.linspace(0.001, 0.002, -(-n * groups // 256)).astype(np.float32)
    return CodedScale(codes, steps, np.array([0.3], np.float32))


def make(coded=None, **changes):
    coded = coded or make_coded()
    codes = np.random.default_rng(0).integers(0, 4, (K, N)).astype(np.uint8)
    return PackedTensor.from_codes(codes, coded.decode(), LEVELS, "odd", coded_scale=coded, **changes)


@pytest.fixture
def tiny_model():
    """A matrix with coded scales and zero points, and one whose scales are stored; the forger of headers takes it."""
    zero = np.full((GROUPS, N), 0.5, np.float16)
    return PackedModel({"a.kernel": make(zero=zero), "b.kernel": dataclasses.replace(make(), coded_scale=None)}, {})


@pytest.fixture
def path(tmp_path, tiny_model):
    target = tmp_path / "model.lowbit"
    formats.write(target, tiny_model)
    return target


def test_a_scale_is_its_code_times_a_step_and_a_mean():
    coded = make_coded()
    scale = coded.decode()
    assert (scale.shape, scale.dtype) == ((GROUPS, N), np.float16)
    for group, output in ((0, 0), (3, 63), (0, 64), (3, 89)):
        at = output * GROUPS + group
        step = coded.steps[at // 256]
        assert (at // 256) == (output >= 64)
        expected = np.float32(np.float32(int(coded.codes[output, group]) - 128) * step) + np.float32(0.3)
        assert scale[group, output] == np.float16(expected)
    # Neither below what a scale is floored to, nor beyond float16.
    odd = CodedScale(np.array([[0], [255], [128]], np.uint8), np.array([1e38], np.float32), np.array([0.5], np.float32))
    assert odd.decode().tolist() == [[np.float16(1e-5), 65504.0, 0.5]]


def test_the_file_gives_back_what_was_written(path):
    read, tensor = formats.read(path, verify=True), make()
    coded, plain = read.tensors["a.kernel"], read.tensors["b.kernel"]
    for name in ("codes", "steps", "mean"):
        np.testing.assert_array_equal(getattr(coded.coded_scale, name), getattr(tensor.coded_scale, name))
    assert plain.coded_scale is None
    np.testing.assert_array_equal(coded.scale, plain.scale)
    np.testing.assert_array_equal(plain.decode(), tensor.decode())
    again = path.with_name("again.lowbit")
    formats.write(again, read)
    assert again.read_bytes() == path.read_bytes()


def test_bytes_are_those_of_the_arrays_in_the_file(path):
    from safetensors.numpy import load_file

    arrays = load_file(path)
    assert arrays["a.kernel.scale_codes"].shape == (N, GROUPS)
    assert arrays["a.kernel.scale_steps"].shape == (2,)
    assert arrays["a.kernel.scale_mean"].shape == (1,)
    assert "a.kernel.scale" not in arrays
    coded, plain = formats.summarize(formats.read(path)).rows
    assert (coded.grid, plain.grid) == ("odd, 8-bit scales", "odd")
    assert coded.nbytes == sum(array.nbytes for name, array in arrays.items() if name.startswith("a.kernel."))
    zeros, stored = 2 * N * GROUPS, 2 * N * GROUPS
    assert coded.nbytes - zeros == plain.nbytes - stored + N * GROUPS + 4 * 2 + 4


def test_outputs_and_factors_go_on_from_decoded_scales():
    rng = np.random.default_rng(2)
    adapter = Adapter(*(rng.standard_normal(shape).astype(np.float16) for shape in ((K, 2), (2, N))))
    tensor = make(adapter=adapter)
    some = tensor.outputs(np.array([70, 3]))
    some.validate()
    np.testing.assert_array_equal(some.decode(), tensor.decode()[:, [70, 3]])
    assert tensor.without_adapter().coded_scale is tensor.coded_scale


def test_a_damaged_code_of_a_scale_is_found_by_its_checksum(path):
    raw = bytearray(path.read_bytes())
    raw[raw.index(make_coded().codes.tobytes()) + 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"tensor 'a.kernel.scale_codes': its bytes do not match their checksum"):
        formats.read(path, verify=True)


def changed(**parts):
    return dataclasses.replace(make_coded(), **parts)


@pytest.mark.parametrize(
    ("coded", "message"),
    [
        (make_coded(n=N - 1), r"codes of scales are uint8\[89, 4\] for \[k n\] = \[12, 90\]\n  -> store uint8 \[n g\]"),
        (make_coded(groups=5), r"codes of scales are uint8\[90, 5\]"),
        (changed(codes=make_coded().codes[:, :0]), r"codes of scales are uint8\[90, 0\]"),
        (changed(codes=make_coded().codes.reshape(-1)), r"codes of scales are uint8\[360\]"),
        (changed(codes=make_coded().codes.astype(np.int8)), r"codes of scales are int8\[90, 4\]"),
        (
            changed(steps=make_coded().steps[:1]),
            r"scale_steps is float32\[1\], and not float32\[2\]\n  -> store a",
        ),
        (changed(steps=make_coded().steps.astype(np.float16)), r"scale_steps is float16\[2\]"),
        (changed(mean=np.ones(2, np.float32)), r"scale_mean is float32\[2\], and not float32\[1\]"),
    ],
)
def test_codes_of_scales_that_do_not_fit_are_refused(coded, message):
    with pytest.raises(FormatError, match=message):
        dataclasses.replace(make(), coded_scale=coded).validate()


def test_numbers_that_are_none_and_scales_of_other_codes_are_refused(tmp_path):
    for broken in (changed(mean=np.full(1, np.nan, np.float32)), changed(steps=np.full(2, np.inf, np.float32))):
        with pytest.raises(FormatError, match="a step or the mean of scales is NaN or infinity"):
            make(broken)
    other = dataclasses.replace(make(), coded_scale=changed(mean=np.full(1, 0.31, np.float32)))
    with pytest.raises(FormatError, match=r"'a.kernel': scale is not what its codes decode to\n  -> give coded_scale"):
        formats.write(tmp_path / "x.lowbit", PackedModel({"a.kernel": other}, {}))
    with pytest.raises(FormatError, match="codes of scales are"):  # 16 groups for one scale of all
        PackedTensor.from_codes(
            make().codes(), np.ones((1, 1), np.float16), LEVELS, "odd", coded_scale=make_coded(groups=16)
        )


def rename(entries, metadata, old, new):
    entries[new] = entries.pop(old)
    metadata["checksums"][new] = metadata["checksums"].pop(old)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda e, m: m["packed"]["a.kernel"].update(coded_scale=False), "coded_scale = False is not true"),
        (lambda e, m: m["packed"]["a.kernel"].update(coded_scales=True), "needs exactly"),
        (lambda e, m: m["packed"]["a.kernel"].pop("coded_scale"), "array 'a.kernel.scale' is missing"),
        (lambda e, m: m["packed"]["b.kernel"].update(coded_scale=True), "array 'b.kernel.scale_codes' is missing"),
        (lambda e, m: m["packed"]["a.kernel"].update(shape=[K, N + 1]), r"codes of scales are uint8\[90, 4\] for"),
        (lambda e, m: m["packed"]["a.kernel"].update(shape=[2**62, 2**62]), "codes of scales are"),
        (lambda e, m: m["packed"]["a.kernel"].update(shape=[0, N]), "is empty"),
        (lambda e, m: e["a.kernel.scale_codes"].update(shape=[GROUPS, N]), r"codes of scales are uint8\[4, 90\]"),
        (lambda e, m: e["a.kernel.scale_codes"].update(shape=[N, 2, 2]), r"codes of scales are uint8\[90, 2, 2\]"),
        (lambda e, m: e["a.kernel.scale_steps"].update(shape=[2, 1]), r"scale_steps is float32\[2, 1\]"),
        (lambda e, m: e["a.kernel.scale_steps"].update(shape=[4], dtype="F16"), "dtype is F16, not F32"),
        (lambda e, m: rename(e, m, "a.kernel.scale_mean", "a.kernel.mean"), "array 'a.kernel.scale_mean' is missing"),
    ],
)
def test_forged_headers_are_refused(forge, edit, message):
    with pytest.raises(FormatError, match=message):
        formats.read(forge(edit))


def test_a_step_that_is_no_number_is_refused_when_the_file_is_opened(path):
    raw = bytearray(path.read_bytes())
    at = raw.index(make_coded().steps.tobytes())
    raw[at : at + 4] = np.array(np.nan, np.float32).tobytes()
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"model.lowbit: tensor 'a.kernel': a step or the mean of scales is NaN"):
        formats.read(path)


def test_any_bytes_of_the_second_level_give_finite_scales_above_0_or_are_refused(path):
    sound = path.read_bytes()
    coded = make_coded()
    places = [(sound.index(part.tobytes()), part.nbytes) for part in (coded.codes, coded.steps, coded.mean)]
    rng = np.random.default_rng(0)
    refused = 0
    for case in range(600):
        raw = bytearray(sound)
        begin, size = places[case % 3]
        at = begin + 4 * int(rng.integers(size // 4))
        raw[at : at + 4] = rng.bytes(4) if case % 2 else np.float32(10.0 ** rng.integers(-45, 39)).tobytes()
        path.write_bytes(raw)
        try:
            scale = formats.read(path).tensors["a.kernel"].scale
        except FormatError:
            refused += 1
            continue
        assert np.all(np.isfinite(scale) & (scale > 0))
    assert 0 < refused < 20  # of random float32 numbers, one of 128 is none
