"""The child that decodes with the compiled kernels; see `lowbit.bench.child`.

{"decode": "model.lowbit", "prompt": 512, "tokens": 32, "threads": 2}
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.formats import read
from lowbit.kernels import Runtime


def measure(runtime: Runtime, prompt: int, tokens: int) -> dict[str, Any]:
    """Times a prompt, with the logits of its last token, and each of the tokens after it."""
    ids = np.random.default_rng(1).integers(0, runtime.config.vocab_size, prompt + tokens)
    cache = runtime.new_cache()
    seconds = []
    for start, end in [(0, prompt), *((at, at + 1) for at in range(prompt, prompt + tokens))]:
        began = time.perf_counter()
        hidden = runtime.hidden(ids[None, start:end], cache)
        runtime.head(hidden[0, -1])
        seconds.append(time.perf_counter() - began)
    return {"prompt_seconds": seconds[0], "token_seconds": seconds[1:]}


def peak_bytes() -> int | None:
    """Returns the largest resident size of this process so far; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Answers requests until the input ends; a model is kept for the next request that names it."""
    kept: tuple[tuple[str, int], Runtime] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        key = request["decode"], request["threads"]
        if kept is None or kept[0] != key:
            kept = None
            kept = key, Runtime(read(Path(key[0])), kernels="auto", threads=key[1])
            measure(kept[1], 8, 2)
        answer = measure(kept[1], request["prompt"], request["tokens"])
        answer |= {"peak_bytes": peak_bytes(), "weight_bytes": kept[1].weights.nbytes}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
