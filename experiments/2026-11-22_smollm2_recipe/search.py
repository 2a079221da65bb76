"""Runs on the GPU machine: recipes at equal tokens. name,variant,key=value,...,KL=w,T=t,MUON=1,START=run,TEACHER=run,KEEP=1; ..."""
import dataclasses, os, pathlib, shutil, sys, time, traceback
import jax, jax.numpy as jnp, numpy as np, optax
GGUF, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
DEADLINE = time.time() + float(sys.argv[4])
from lowbit import config as configs
from lowbit.distill import distill_from
from lowbit.models import Transformer
from lowbit.train import prepare, train, load_trained
from lowbit.train.optimizers import scale_by_peak, with_standard_promotion, path_string
from lowbit.train.schedules import make_schedule
DATA = ["data.train=/tmp/d/train.npy", "data.valid=/tmp/d/smollm2_val.npy,/tmp/d/smollm2_wikitext2_valid.npy"] if not os.environ.get("SMOKE") else ["data.train=/work/shared/bench/smollm2_val.npy", "data.valid=/work/shared/bench/smollm2_val.npy"]

def orthogonal(x):
    t = x.shape[-2] > x.shape[-1]
    x = (jnp.swapaxes(x, -1, -2) if t else x)
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    x = x.astype(jnp.bfloat16)
    for _ in range(5):
        a = x @ jnp.swapaxes(x, -1, -2)
        b = jnp.bfloat16(-4.7750) * a + jnp.bfloat16(2.0315) * (a @ a)
        x = jnp.bfloat16(3.4445) * x + b @ x
    return (jnp.swapaxes(x, -1, -2) if t else x).astype(jnp.float32)

def muon(momentum=0.95):
    def init(p): return jax.tree.map(jnp.zeros_like, p)
    def update(g, m, p=None):
        m = jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, m, g)
        u = jax.tree.map(lambda a, b: 0.2 * max(a.shape[-2:]) ** 0.5 * orthogonal(momentum * a + (1 - momentum) * b), m, g)
        return u, m
    return optax.GradientTransformation(init, update)

def muon_optimizer(c, e):
    schedule = make_schedule(steps=configs.steps(c), **c.schedule.to_dict())
    label = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: "muon" if "proj/kernel" in path_string(path) and path_string(path).startswith("params") else "adam", tree)
    slr = c.optimizer.scale_learning_rate
    scaled = optax.GradientTransformation(lambda p: optax.EmptyState(), lambda u, s, p=None: (jax.tree_util.tree_map_with_path(lambda path, x: x * slr if path_string(path).startswith("quant") else x, u), s))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.partition({"muon": muon(), "adam": with_standard_promotion(optax.scale_by_adam(c.optimizer.b1, c.optimizer.b2))}, label), scaled, scale_by_peak(schedule, c.optimizer.learning_rate))

def masters(run):
    return jax.tree.map(np.asarray, load_trained(f"/tmp/runs/{run}").params)

from lowbit.models import pretrained
from lowbit.train.checkpoints import Checkpoints
from lowbit.train.setup import Experiment
_load, _loaded = pretrained.load, {}
def load_once(source):
    if source not in _loaded:
        t = time.time(); _loaded[source] = _load(source); print("loaded in", round(time.time() - t, 1), flush=True)
    return _loaded[source]
pretrained.load = load_once
_save = Checkpoints.save
_initial = Experiment.initial_state
def initial_state(self):
    t = time.time()
    # Scales by parameter, each its own small program: in one program with everything else they compile for 40 s.
    plain = dataclasses.replace(self, rules=tuple(MAX[0]))
    s = _initial(plain)
    quantizers = resolve(self.rules, self.params)
    quant = {path: jax.jit(q.init)(at(s.params["params"], path))["scale"] for path, q in quantizers.items() if q.granularity is not None}
    s = dataclasses.replace(s, params={**s.params, "quant": jax.tree_util.tree_map_with_path(lambda path, old: quant[path_string(path).removesuffix("/scale")], s.params["quant"])})
    s = jax.block_until_ready(s); print("initial state", round(time.time() - t, 1), flush=True); return s
Experiment.initial_state = initial_state
from lowbit.tree import resolve
from lowbit.train.quantization import quantization_rules
MAX = [None]
def at(tree, path):
    for k in path.split("/"): tree = tree[k]
    return tree

for setting in sys.argv[3].split(";"):
    name, variant, *over = setting.split(","); variant = variant.replace("+", ",")
    if time.time() > DEADLINE: print("SKIPPED", name, flush=True); continue
    own = {o.split("=")[0]: o.split("=")[1] for o in over if o.split("=")[0] in ("KL", "T", "MUON", "START", "TEACHER", "KEEP", "WISE")}
    over = [o for o in over if o.split("=")[0] not in own]
    try:
        shutil.rmtree(f"/tmp/runs/{name}", ignore_errors=True)
        c = configs.load(f"configs/qat_smollm2.py:{variant}", [*([f"model.source={GGUF}"] if GGUF != "none" else []), f"run_folder=/tmp/runs/{name}", *DATA, "checkpoint.every_minutes=inf", "checkpoint.keep=1", "log.progress=False", *over])
        t = time.time()
        e = prepare(c)
        quick = configs.from_json(configs.to_json(c), "x"); quick.quant.scale_init = "max"; MAX[0] = quantization_rules(quick.quant)
        print("prepared", round(time.time() - t, 1), flush=True)
        Checkpoints.save = _save if "KEEP" in own else (lambda *a: None)
        teacher_params = masters(own["TEACHER"]) if "TEACHER" in own else e.params
        if "WISE" in own: teacher_params = jax.tree.map(lambda a, b: float(own["WISE"]) * a + (1 - float(own["WISE"])) * b, teacher_params, e.params)
        if "START" in own: e = dataclasses.replace(e, params=masters(own["START"]))
        if "MUON" in own: e = dataclasses.replace(e, optimizer=muon_optimizer(c, e))
        if "KL" in own:
            teacher = Transformer(e.cfg, jnp.bfloat16, attention="auto")
            wise = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), teacher_params)
            e = dataclasses.replace(e, constants={**e.constants, "teacher": wise}, objective=distill_from(teacher, e.model, float(own["KL"]), float(own.get("T", 1)), c.train.loss_chunks))
        print("teacher", round(time.time() - t, 1), flush=True)
        r = train(e)
        print("trained", round(time.time() - t, 1), round(r.seconds, 1), flush=True)
        print("RUN", name, {k: round(v.nll, 4) for k, v in r.evaluations.items()}, "tokens/s", round(r.tokens_per_s), "seconds", round(time.time() - t, 1), flush=True)
        (OUT / name).mkdir(parents=True, exist_ok=True)
        for f in ("metrics.jsonl", "result.json", "config.json", "evaluations.jsonl"):
            (OUT / name / f).write_bytes(pathlib.Path(f"/tmp/runs/{name}/{f}").read_bytes())
        (OUT / name / "setting.txt").write_text(setting + "\n")
        if "KEEP" not in own: shutil.rmtree(f"/tmp/runs/{name}", ignore_errors=True)
    except Exception:
        print("FAILED", name, traceback.format_exc()[-1500:], flush=True)
