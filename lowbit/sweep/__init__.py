"""Sweeps: many runs of one config, where points that share a shape share a compile.

product(axes)                 the points of a grid
Sweep(base, points)           what a file in configs/sweeps returns
load_sweep(path)              such a file, checked
run_sweep(sweep, folder)      trains every point; sweep.json, table and figures; resumes
"""

from lowbit.sweep.driver import run_sweep
from lowbit.sweep.points import Point, make_points
from lowbit.sweep.spec import Sweep, load_sweep, product

__all__ = ["Point", "Sweep", "load_sweep", "make_points", "product", "run_sweep"]
