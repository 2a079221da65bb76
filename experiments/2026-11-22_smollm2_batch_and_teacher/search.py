"""Runs on the GPU machine: variants of the recipe at equal tokens, with and without a teacher."""
import dataclasses, json, pathlib, shutil, sys, time, traceback
import jax, jax.numpy as jnp, numpy as np
GGUF, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
from lowbit import config as configs
from lowbit.distill import distill_from
from lowbit.models import Transformer
from lowbit.train import prepare, train
for setting in sys.argv[3].split(";"):
    name, variant, *over = setting.split(","); variant = variant.replace("+", ",")
    try:
        kl = [float(o.split("=")[1]) for o in over if o.startswith("KL=")]
        temperature = [float(o.split("=")[1]) for o in over if o.startswith("T=")] or [1.0]
        over = [o for o in over if not o.startswith(("KL=", "T="))]
        shutil.rmtree(f"/tmp/runs/{name}", ignore_errors=True)
        c = configs.load(f"configs/qat_smollm2.py:{variant}", [f"model.source={GGUF}", f"run_folder=/tmp/runs/{name}", "data.train=/tmp/d/train.npy", "data.valid=/tmp/d/smollm2_val.npy,/tmp/d/smollm2_wikitext2_valid.npy", "checkpoint.every_minutes=inf", "checkpoint.keep=1", "log.progress=False", *over])
        t = time.time()
        e = prepare(c)
        if kl:
            teacher = Transformer(e.cfg, jnp.bfloat16, attention="auto")
            wise = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), e.params)
            e = dataclasses.replace(e, constants={**e.constants, "teacher": wise}, objective=distill_from(teacher, e.model, kl[0], temperature[0], c.train.loss_chunks))
        r = train(e)
        print("RUN", name, {k: round(v.nll, 4) for k, v in r.evaluations.items()}, "tokens/s", round(r.tokens_per_s), "seconds", round(time.time() - t, 1), flush=True)
        (OUT / name).mkdir(parents=True, exist_ok=True)
        for f in ("metrics.jsonl", "result.json", "config.json", "evaluations.jsonl"):
            (OUT / name / f).write_bytes(pathlib.Path(f"/tmp/runs/{name}/{f}").read_bytes())
        shutil.rmtree(f"/tmp/runs/{name}", ignore_errors=True)
    except Exception:
        print("FAILED", name, traceback.format_exc()[-1500:], flush=True)
