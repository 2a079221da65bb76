"""Post-training quantization: a model to any width without training; a method is a pure function of one kernel."""

from lowbit.ptq.activations import Activations
from lowbit.ptq.calibration import Calibration, draw
from lowbit.ptq.layers import QuantizedLayer
from lowbit.ptq.method import Method, Options, Rounded
from lowbit.ptq.methods import METHODS, method_by_name
from lowbit.ptq.model import Plan, quantize_layers
from lowbit.ptq.result import QuantizedModel, assemble, pack_layers, write_run
from lowbit.ptq.summary import Summary
from lowbit.ptq.target import GRIDS, Target, make_target

__all__ = [
    "GRIDS",
    "METHODS",
    "Activations",
    "Calibration",
    "Method",
    "Options",
    "Plan",
    "QuantizedLayer",
    "QuantizedModel",
    "Rounded",
    "Summary",
    "Target",
    "assemble",
    "draw",
    "make_target",
    "method_by_name",
    "pack_layers",
    "quantize_layers",
    "write_run",
]
