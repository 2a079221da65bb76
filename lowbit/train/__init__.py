"""One training loop: a pure step, an objective passed in, and what has to live around them.

run(config)                          a config from beginning to end
train(prepare(config))               the same, with the parts in hand between
load_trained(run_folder)             what it left behind
make_train_step(objective, optimizer)  the pure step alone
"""

from lowbit.errors import NonFiniteError
from lowbit.train.loop import Result, run, train
from lowbit.train.setup import Experiment, prepare
from lowbit.train.state import TrainState
from lowbit.train.step import Objective, make_train_step
from lowbit.train.trained import Trained, load_trained

__all__ = [
    "Experiment",
    "NonFiniteError",
    "Objective",
    "Result",
    "TrainState",
    "Trained",
    "load_trained",
    "make_train_step",
    "prepare",
    "run",
    "train",
]
