"""Mixed precision: what each matrix loses at each width, and the widths that lose least under a budget of bytes."""

from lowbit.mixed.allocation import Allocation, allocate, allocated_bytes, allowed_bytes, uniform
from lowbit.mixed.finished import FinishedRows
from lowbit.mixed.measures import MEASURES, SEQUENCES, measure_by_name
from lowbit.mixed.record import read_losses, read_widths, to_record
from lowbit.mixed.trial import Sensitivities, Trial

__all__ = [
    "MEASURES",
    "SEQUENCES",
    "Allocation",
    "FinishedRows",
    "Sensitivities",
    "Trial",
    "allocate",
    "allocated_bytes",
    "allowed_bytes",
    "measure_by_name",
    "read_losses",
    "read_widths",
    "to_record",
    "uniform",
]
