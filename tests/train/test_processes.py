"""Of several processes one writes, and all agree."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from lowbit.train import processes, run


def test_any_of_asks_all_processes(monkeypatch):
    assert processes.any_of(True)
    assert not processes.any_of(False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda flag: np.array([flag, True]))
    assert processes.any_of(False) is True


def test_another_process_writes_no_file_of_the_folder(tiny_config, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    config = tiny_config("log.tensorboard=true")
    result = run(config)
    assert result.finished
    # Checkpoints are written by all processes together.
    assert [path.name for path in result.run_folder.iterdir()] == ["checkpoints"]
