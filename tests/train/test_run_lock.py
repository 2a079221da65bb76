"""Two runs in one folder at once: the second is refused, and told who the first is."""

import dataclasses
import os

import pytest

from lowbit.data import TokenDataset
from lowbit.errors import LockedError
from lowbit.locks import NAME, check_free
from lowbit.train import prepare, run, train


def test_a_run_that_is_being_trained_cannot_be_resumed(tiny_config):
    config = tiny_config("data.valid=")
    experiment = prepare(config)
    refused = []

    class Meanwhile(TokenDataset):
        """Data during whose reading somebody resumes the run."""

        def batch(self, step):
            for resume in (lambda: run(config, resume=True), lambda: train(experiment, resume=True)):
                with pytest.raises(LockedError, match=rf"run is being written by process {os.getpid()} on .* since "):
                    resume()
                refused.append(step)
            return super().batch(step)

    data = Meanwhile(experiment.train.windows, experiment.train.batch_size, experiment.train.seed)
    result = train(dataclasses.replace(experiment, train=data))
    assert result.finished
    assert refused == [0, 0, 1, 1]
    assert not (result.run_folder / NAME).exists()
    check_free(result.run_folder)
