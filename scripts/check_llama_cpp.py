"""Compares exported GGUF files with what llama.cpp makes of them, and writes the outcome as JSON.

    python scripts/check_llama_cpp.py --python /path/to/python/with/llama-cpp-python -o docs/results/llama_cpp.json

For every width and layout: each tensor as libggml decodes it against the packed file, bit for bit; logits against
`lowbit.export.llama_cpp`, which rounds activations as llama.cpp does, within what float32 rounding explains; and each
token of a greedy text against the emulated choice. Exit status 1 if anything differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowbit import config as configs
from lowbit.cli import quantized
from lowbit.export import pack_model
from lowbit.export.gguf import GgufModel, to_gguf, write_gguf
from lowbit.export.gguf_layout import slots
from lowbit.export.llama_cpp import LlamaCpp, distance
from lowbit.formats import PackedModel, decode
from lowbit.kernels import Tokenizer
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.models.gguf import dequantized
from lowbit.tree import unflatten

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "assets" / "quickstart" / "model"
SIDE = ROOT / "scripts" / "llama_cpp_side.py"
PROMPT = "The ship lay in the bay, and the captain"
TOKENS, NEW_TOKENS = 32, 24
WIDTHS = (1, 1.58, 2, 3, 4)

_WIDE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


class Case(NamedTuple):
    """One file.

    Attributes:
      name: unique.
      config: of a model with random weights; None takes the shipped one.
      quant: what to change in the section `quant` of a config.
      avoid: types not to be used.
    """

    name: str
    config: dict[str, Any] | None
    quant: dict[str, Any]
    avoid: tuple[str, ...] = ()


def cases() -> Iterator[Case]:
    """Yields all widths on both models, and what else a file may hold."""
    for bits in WIDTHS:
        yield Case(f"quickstart-{bits:g}", None, {"method": "paretoq", "bits": bits})
        yield Case(f"wide-{bits:g}", _WIDE, {"method": "paretoq", "bits": bits})
    yield Case("wide-tq2_0", _WIDE, {"method": "paretoq", "bits": 1.58}, ("TQ1_0",))
    yield Case("wide-absmean", _WIDE, {"method": "absmean_ternary", "granularity": "tensor"})
    yield Case("wide-rtn2-groups", _WIDE, {"method": "rtn", "bits": 2, "granularity": 64})
    yield Case("wide-rtn8", _WIDE, {"method": "rtn", "bits": 8})
    yield Case("wide-minmax4", _WIDE, {"method": "rtn", "bits": 4, "symmetric": False})
    yield Case("wide-own-head", {**_WIDE, "tie_word_embeddings": False}, {"method": "paretoq", "bits": 2})
    yield Case("wide-qwen2", {**_WIDE, "model_type": "qwen2"}, {"method": "paretoq", "bits": 3})
    yield Case("wide-llama3", {**_WIDE, "rope_scaling": _LLAMA3}, {"method": "paretoq", "bits": 4})
    yield Case("wide-yarn", {**_WIDE, "rope_scaling": _YARN}, {"method": "paretoq", "bits": 4})
    yield Case("wide-linear", {**_WIDE, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"method": "float"})


def exported(case: Case, folder: Path) -> tuple[PackedModel, GgufModel, Path]:
    """Makes the packed model and the GGUF file of a case."""
    source = QUICKSTART if case.config is None else _random_model(LlamaConfig.from_hf(case.config), folder / case.name)
    quant = {**configs.base().quant.to_dict(), **case.quant}
    model = quantized.from_pretrained(str(source), quant)
    packed = pack_model(model.cfg, model.params, model.rules, model.state, model.tokenizer_files, {})
    gguf = to_gguf(packed, case.name, case.avoid)
    path = folder / f"{case.name}.gguf"
    write_gguf(path, gguf)
    return packed, gguf, path


def check(case: Case, folder: Path, python: str) -> dict[str, Any]:
    """Runs one case in llama.cpp and returns what was found; "ok" says whether all of it is as it must be."""
    packed, gguf, path = exported(case, folder)
    cfg = LlamaConfig.from_hf(packed.config)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (1, TOKENS))
    low_bit = {name: tensor for name, tensor in gguf.tensors.items() if tensor.kind.block > 1}
    job: dict[str, Any] = {"path": str(path), "tokens": tokens[0], "prompt": PROMPT, "new_tokens": NEW_TOKENS}
    for name, tensor in low_bit.items():
        job |= {f"data/{name}": np.ascontiguousarray(tensor.data), f"type/{name}": tensor.kind.name}
        job[f"size/{name}"] = int(np.prod(tensor.shape))
    np.savez(folder / "job.npz", **job)
    done = subprocess.run(
        [python, str(SIDE), str(folder / "job.npz"), str(folder / "result.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"llama.cpp failed on {case.name}:\n{done.stderr[-4000:]}")
    theirs = np.load(folder / "result.npz")

    model = LlamaCpp(path)
    ours = model.logits(tokens)
    bound = model.scatter(tokens, ours)
    apart = distance(theirs["logits"][None], ours)
    rounding = distance(ours, LlamaCpp(path, activations=False).logits(tokens))
    exact, rounded, wrong = _weights(packed, gguf, theirs)
    prompt = Tokenizer(packed).encode(PROMPT)
    gap = _greedy_gap(model, prompt, theirs["greedy"].tolist())
    return {
        "case": case.name,
        "types": dict(Counter(row.kind for row in gguf.rows)),
        "weights_equal": exact,
        "weights_with_rounded_scale": rounded,
        "tensors_wrong": wrong,
        "gguf_bytes": path.stat().st_size,
        "logits_rms": apart.rms,
        "logits_rms_bound": bound.rms,
        "logits_rms_of_8_bit_activations": rounding.rms,
        "logits_std": float(ours.std()),
        "greedy_gap": gap,
        "greedy_gap_bound": 2 * bound.largest,
        "same_prompt_tokens": prompt == theirs["prompt_tokens"].tolist(),
        "text": str(theirs["text"]),
        "ok": not wrong
        and apart.rms <= bound.rms
        and apart.rms < rounding.rms
        and gap <= 2 * bound.largest
        and prompt == theirs["prompt_tokens"].tolist(),
    }


def _weights(packed: PackedModel, gguf: GgufModel, theirs: Any) -> tuple[int, int, list[str]]:
    """Returns weights equal bit for bit (but for the sign of zero), weights whose scale was rounded, wrong tensors."""
    errors = {row.name: row.error for row in gguf.rows}
    exact = rounded = 0
    wrong = []
    for slot in slots(LlamaConfig.from_hf(packed.config)):
        if f"values/{slot.gguf}" not in theirs.files:
            continue
        got = theirs[f"values/{slot.gguf}"]
        values = decode(packed.tensors[slot.packed])
        shipped = slot.to_gguf(values if slot.along_rows else values.T).reshape(-1)
        same_bytes = np.array_equal(got, dequantized(gguf.tensors[slot.gguf], slot.gguf).reshape(-1))
        # Relative errors are rounded to float32 themselves, twice.
        within = np.abs(shipped - got) <= errors[slot.packed] * (1 + 2.0**-22) * np.abs(shipped)
        if not same_bytes or not within.all():
            wrong.append(slot.packed)
        elif errors[slot.packed]:
            rounded += got.size
        else:
            exact += got.size
    return exact, rounded, wrong


def _greedy_gap(model: LlamaCpp, prompt: list[int], greedy: list[int]) -> float:
    """Returns how far llama.cpp's choice lies below the largest emulated logit, at most, along its own text."""
    logits = model.logits(np.array([prompt + greedy]))[0, len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(greedy)), greedy]
    return float((logits.max(axis=-1) - chosen).max(initial=0.0))


def _random_model(cfg: LlamaConfig, folder: Path) -> Path:
    """Writes a model with random weights and the shipped tokenizer."""
    if folder.exists():
        return folder
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in param_shapes(cfg).items():
        norm = path.endswith("scale")
        flat[path] = rng.normal(1.0 if norm else 0.0, 0.1 if norm else 0.05, shape).astype(np.float32)
    files = {name: (QUICKSTART / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    save_hf(folder, cfg, unflatten(flat), files, "float32")
    return folder


def main() -> int:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter that imports llama_cpp")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("-o", "--output", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    version = subprocess.run(
        [arguments.python, "-c", "import llama_cpp; print(llama_cpp.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            if arguments.only in case.name:
                found.append(check(case, Path(folder), arguments.python))
                print(json.dumps(found[-1]), flush=True)
    if arguments.output is not None:
        result = {"llama_cpp_python": version, "prompt": PROMPT, "cases": found}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(case["ok"] for case in found) else 1


if __name__ == "__main__":
    sys.exit(main())
