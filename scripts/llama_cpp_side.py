"""The half of check_llama_cpp.py that runs beside llama.cpp, in an interpreter of its own without lowbit.

    python scripts/llama_cpp_side.py JOB.npz RESULT.npz

JOB holds `path` of a GGUF file, `tokens` i64[t], `prompt`, `new_tokens`, and for each tensor to decode its bytes under
`data/NAME` and its type under `type/NAME`. RESULT holds `logits` f32[t V], `prompt_tokens`, `greedy` tokens, their
`text`, and `values/NAME` f32 as libggml's own function for the type decodes them.
"""

import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np

_F32 = 0  # of enum ggml_type
_CONTEXT = 256


def main(job_file: str, result_file: str) -> None:
    """Runs a job."""
    job = np.load(job_file)
    model = llama_cpp.Llama(
        str(job["path"]),
        n_ctx=_CONTEXT,
        n_threads=2,
        logits_all=True,
        verbose=False,
        type_k=_F32,  # a cache of fp16 would round keys and values, which is nothing of the weights either
        type_v=_F32,
    )
    tokens = job["tokens"].tolist()
    model.eval(tokens)
    result = {"logits": np.array(model.scores[: len(tokens)])}
    prompt = model.tokenize(str(job["prompt"]).encode(), add_bos=True, special=False)
    greedy = []
    model.reset()
    for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token == model.token_eos() or len(greedy) == int(job["new_tokens"]):
            break
        greedy.append(token)
    result |= {"prompt_tokens": np.array(prompt), "greedy": np.array(greedy, np.int64)}
    result["text"] = np.array(model.detokenize(greedy).decode("utf-8", "replace"))
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.*"))))
    for key in job.files:
        if key.startswith("data/"):
            name = key.removeprefix("data/")
            result[f"values/{name}"] = _decoded(library, str(job[f"type/{name}"]), job[key], int(job[f"size/{name}"]))
    np.savez(result_file, **result)


def _decoded(library: ctypes.CDLL, kind: str, data: np.ndarray, size: int) -> np.ndarray:
    values = np.empty(size, np.float32)
    decode = library[f"dequantize_row_{kind.replace('Q', 'q', 1).replace('T', 't', 1)}"]
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decode.restype = None
    decode(data.ctypes.data, values.ctypes.data, size)
    return values


if __name__ == "__main__":
    main(*sys.argv[1:])
