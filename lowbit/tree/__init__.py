"""Which parameter gets what: ordered regex rules over parameter paths, and quantizers applied to whole trees."""

from lowbit.tree.apply import encode, fake_quant, init_state, resolve, start_masters
from lowbit.tree.paths import flatten, unflatten
from lowbit.tree.report import BitsReport, bits_report
from lowbit.tree.rules import Rule, assign, lookup

__all__ = [
    "BitsReport",
    "Rule",
    "assign",
    "bits_report",
    "encode",
    "fake_quant",
    "flatten",
    "init_state",
    "lookup",
    "resolve",
    "start_masters",
    "unflatten",
]
