"""Adapters at the command line: a run, its file, proof that both are one, text, and llama.cpp's two files."""

import dataclasses
import re

import pytest

from lowbit import formats

pytestmark = pytest.mark.usefixtures("one_device")


def test_a_run_with_adapters_is_packed_verified_inspected_and_split(lowbit, train_arguments, tmp_path):
    run, packed, gguf = tmp_path / "run", tmp_path / "m.lowbit", tmp_path / "m.gguf"
    adapters = ("--config.adapters.rank=4", "--config.optimizer.frozen=params/.*")
    done = lowbit(*train_arguments(run), *adapters)
    assert done.status == 0, done.err
    assert lowbit("export", run, "-o", packed).status == 0
    done = lowbit("verify", packed)
    assert done.status == 0, done.out
    assert "all equal bit for bit" in done.out
    done = lowbit("inspect", packed)
    assert re.search(r"^layers\.1\.mlp\.up_proj\.kernel +seq2 \+ rank 4 ", done.out, re.M)

    done = lowbit("export", packed, "--to", "gguf", "-o", gguf)
    assert done.status == 0, done.err
    assert re.search(r"^adapters +\S+m\.lora\.gguf, .*, for --lora$", done.out, re.M)
    base = tmp_path / "base.lowbit"
    assert lowbit("export", gguf, "-o", base).status == 0
    ours, theirs = formats.read(packed).without_adapters(), formats.read(base)
    assert not theirs.adapters()
    for name, tensor in ours.tensors.items():
        assert (formats.decode(tensor) == formats.decode(theirs.tensors[name])).all()

    # The run has factors that the base is without: verify compares it with what they stand beside, and knows.
    for flags in ((), ("--against", run)):
        done = lowbit("verify", base, *flags)
        assert done.status == 0, done.out
        assert re.search(r"^\S+base.lowbit against run \S+run at step 2 without its adapters$", done.out, re.M)
        assert "all equal bit for bit" in done.out
    wrong = tmp_path / "wrong.lowbit"
    formats.write(wrong, dataclasses.replace(theirs, meta=formats.read(packed).meta))
    done = lowbit("verify", wrong)
    assert (done.status, "is NOT the trained model" in done.out) == (1, True)

    gguf.unlink()
    done = lowbit("export", packed, "--to", "gguf", "-o", gguf)  # the file of the adapters is still there
    assert (done.status, gguf.exists()) == (2, False)
    assert "m.lora.gguf exists" in done.err
