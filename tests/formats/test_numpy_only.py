"""Whoever runs a packed model pays for numpy and nothing else."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
blocked = ("jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch", "ml_dtypes", "tokenizers")
for name in blocked:
    sys.modules[name] = None  # any import of it is now an ImportError
import numpy as np
import lowbit.formats, lowbit.kernels
model = lowbit.formats.read(sys.argv[1], verify=True)
w = model.tensors["layers.0.int3.kernel"]
y = lowbit.kernels.matmul(np.ones((2, 10), np.float32), w)
assert y.shape == (2, 3)
loaded = [name for name in blocked if sys.modules.get(name) is not None]
assert not loaded, loaded
print("numpy only")
"""


def test_reading_and_multiplying_load_no_training_stack(tiny_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "numpy only", done.stderr
