"""Of several processes one writes, and all agree."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lowbit.errors import ProcessError
from lowbit.train import processes, run, sharding


def test_any_of_asks_all_processes(monkeypatch):
    assert processes.any_of(True)
    assert not processes.any_of(False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda flag: np.array([flag, True]))
    assert processes.any_of(False) is True


def test_agreement_comes_two_steps_later_to_all(monkeypatch):
    agreement = processes.Agreement(sharding.make_mesh({"data": 4, "fsdp": 2, "tensor": 1}))
    assert agreement.any_of(False, True) == (False, True)  # alone: at once
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    wishes = [(False, False), (True, False), (False, True), (False, False), (False, False)]
    heard = [agreement.any_of(*wish) for wish in wishes]
    assert heard == [(False, False), (False, False), *wishes[:3]]
    agreement.forget()
    assert agreement.any_of(True, True) == (False, False)


def test_failures_of_shared_steps_are_explained(monkeypatch):
    def fail(message):
        with processes.losses_explained():
            raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
        fail("Gloo all-reduce failed")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ProcessError, match=r"process 0 of 2 failed in a step shared by all: Gloo(.|\n)*with --resume"):
        fail("Gloo all-reduce failed: Connection closed by peer\nand more")
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        fail("RESOURCE_EXHAUSTED: out of memory")


def test_another_process_writes_no_file_of_the_folder(tiny_config, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    config = tiny_config("log.tensorboard=true")
    result = run(config)
    assert result.finished
    # Checkpoints are written by all processes together.
    assert [path.name for path in result.run_folder.iterdir()] == ["checkpoints"]
