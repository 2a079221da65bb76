"""AdamW and Muon, whose parameter groups are chosen by the same path rules as everything else."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowbit.errors import ConfigError
from lowbit.train.schedules import Schedule
from lowbit.tree.rules import Rule, assign, lookup


@dataclasses.dataclass(frozen=True)
class Group:
    """How the optimizer treats one group of parameters.

    Attributes:
      learning_rate: factor on the run's learning rate.
      weight_decay: decoupled decay per unit of learning rate (AdamW's lambda).
      frozen: the parameter is a constant of the run: no gradient, no moments, no share in the gradient's norm.
      orthogonal: its updates are made orthogonal, matrix by matrix of a stack `[*s k n]`; read by `muon`.
      partial: of its output channels only those that matter most learn; read by `channels.only_chosen_channels`.
      schedule: share of the peak by step; None follows the run's own.
    """

    learning_rate: float = 1.0
    weight_decay: float = 0.0
    frozen: bool = False
    orthogonal: bool = False
    partial: bool = False
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"a parameter group with {name}={value}", "give a finite number, at least 0")


def default_groups(
    paths: Iterable[str],
    weight_decay: float = 0.0,
    scale_learning_rate: float = 1.0,
    after: Sequence[str] = (),
    orthogonal: bool = False,
    scale_schedule: Schedule | None = None,
    float_learning_rate: float = 1.0,
    partial: bool = False,
) -> list[Rule]:
    """Returns the usual table: matrices decay, norms and biases do not, scales have a rate of their own.

    Args:
      paths: of the leaves of {"params", "quant"}; a rule that none of them would use is left out.
      weight_decay: of the matrices and the embedding.
      scale_learning_rate: factor on the learning rate of everything in the collection "quant".
      after: patterns of rules that will stand before these and take what they match.
      orthogonal: whether updates of the layers' kernels are made orthogonal; those of embedding and head never are.
      scale_schedule: of the same collection; None follows the run's own.
      float_learning_rate: factor on the learning rate of embedding, head, norms and biases.
      partial: whether but a share of the output channels of the layers' kernels learn.

    Raises:
      RuleError: a pattern that is no regular expression.
    """
    kernels_apart = orthogonal or partial or float_learning_rate != 1.0
    kernels = Group(weight_decay=weight_decay, orthogonal=orthogonal, partial=partial)
    table = [
        Rule(r"quant/.*", Group(learning_rate=scale_learning_rate, schedule=scale_schedule)),
        Rule(r"params/(.*/)?(\w*norm/scale|bias)", Group(learning_rate=float_learning_rate)),
        *([Rule(r"params/layers/.*/kernel", kernels)] if kernels_apart else []),
        Rule(r"params/.*", Group(learning_rate=float_learning_rate, weight_decay=weight_decay)),
    ]
    taken = [*(Rule(pattern, True) for pattern in after), Rule(".*", False)]
    left = [path for path in paths if not lookup(taken, path)]
    needed = [lookup(table, path) for path in left]
    return [rule for rule in table if any(group is rule.value for group in needed)]


def assign_groups(rules: Sequence[Rule], params: Any) -> dict[str, Group]:
    """Returns the group of each leaf of {"params", "quant"}; raises RuleError as `lowbit.tree.rules.assign` does."""
    return assign(rules, leaf_paths(params))


def frozen_paths(groups: Mapping[str, Group]) -> frozenset[str]:
    """Returns the paths of the frozen leaves; raises ConfigError if nothing is left to train."""
    frozen = frozenset(path for path, group in groups.items() if group.frozen)
    if len(frozen) == len(groups):
        raise ConfigError("every parameter is in a frozen group", "leave at least one group to train")
    return frozen


def leaf_paths(tree: Any) -> list[str]:
    """Returns the "a/b/c" path of each leaf, in the tree's order."""
    return [path_string(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def path_string(path: Any) -> str:
    """Returns a key path of `jax.tree_util` as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def adamw(
    schedule: Schedule,
    learning_rate: float,
    groups: Mapping[str, Group],
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Returns AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).

        m, v  <- moments of the clipped gradient
        p     <- p - lr * group.learning_rate * (m_hat / (sqrt(v_hat) + eps) + group.weight_decay * p)

    with lr = peak * schedule(step), by the group's schedule where it has one. The peak stands in the optimizer's state
    (see `with_peak`), so runs that differ in learning rate alone can share one compiled step, or be one `vmap`.

    Args:
      schedule: share of the peak, by step.
      learning_rate: the peak.
      groups: of each trained leaf, by path (`assign_groups`).
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      clip_norm: the gradient is scaled down to this global L2 norm; None leaves it as it is.
    """
    return _along(optax.scale_by_adam(b1, b2, eps), schedule, learning_rate, groups, clip_norm)


def muon(
    schedule: Schedule,
    learning_rate: float,
    groups: Mapping[str, Group],
    *,
    momentum: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Returns Muon for the groups that are `orthogonal`, and `adamw` for all others.

        M  <- Nesterov momentum of the clipped gradient
        W  <- W - lr * group.learning_rate * (0.2 sqrt(max(k, n)) * orthogonalized(M) + group.weight_decay * W)

    for each matrix `[k n]` of a stack by itself. `orthogonalized` moves all singular values close to 1, by five
    Newton-Schulz steps (Jordan et al., https://kellerjordan.github.io/posts/muon). The factor gives an update the root
    mean square of AdamW's usual ones, 0.2, so that AdamW's learning rates carry over (arXiv 2502.16982, eq. 4).

    Args:
      momentum: decay of M.
      schedule, learning_rate, groups, b1, b2, eps, clip_norm: as for `adamw`.
    """

    def matrices(updates: Any) -> Any:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), updates)

    def match_rms(u: jax.Array) -> jax.Array:
        return (0.2 * max(u.shape[-2:]) ** 0.5) * u

    def kinds(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "muon" if groups[path_string(path)].orthogonal else "adam", tree
        )

    orthogonalize = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=matrices)
    direction = optax.partition(
        {
            "muon": optax.chain(orthogonalize, optax.stateless_with_tree_map(lambda u, _: match_rms(u))),
            "adam": optax.scale_by_adam(b1, b2, eps),
        },
        kinds,
    )
    return _along(direction, schedule, learning_rate, groups, clip_norm)


def _along(
    direction: optax.GradientTransformation,
    schedule: Schedule,
    learning_rate: float,
    groups: Mapping[str, Group],
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Clips before a direction is found, and decays and scales after."""
    if clip_norm is not None and clip_norm <= 0:
        raise ConfigError(f"gradients cannot be clipped to a norm of {clip_norm}", "give a positive norm, or None")
    if learning_rate < 0:
        raise ConfigError(f"learning rate {learning_rate} is negative", "give a positive number")
    return optax.chain(
        *([optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []),
        with_standard_promotion(direction),
        _scale_and_decay_by_group(groups),
        scale_by_peak(schedule, learning_rate, {path: group.schedule or schedule for path, group in groups.items()}),
    )


def with_standard_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer, free to mix dtypes as optax does (a float to the power of an integer count).

    The rest of the step stays under whatever `jax_numpy_dtype_promotion` says.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _scale_and_decay_by_group(groups: Mapping[str, Group]) -> optax.GradientTransformation:
    def update(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
        group = groups[path_string(path)]
        decayed = u + group.weight_decay * p if group.weight_decay else u
        return decayed if group.learning_rate == 1.0 else group.learning_rate * decayed

    def update_all(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree_util.tree_map_with_path(update, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_all)


class PeakState(NamedTuple):
    """State of `scale_by_peak`: steps taken i32[], peak learning rate f32[], the rate last used f32[]."""

    taken: jax.Array
    peak: jax.Array
    learning_rate: jax.Array


def scale_by_peak(schedule: Schedule, peak: float, by_path: Mapping[str, Schedule]) -> optax.GradientTransformation:
    """Returns the last link of an optimizer: updates times -peak * schedule(taken), with the peak in its state.

    Args:
      schedule: of the run; its rate stands in the state as the one last used.
      peak: the learning rate that schedules are shares of.
      by_path: the schedule of each leaf.
    """

    def init(params: Any) -> PeakState:
        return PeakState(jnp.zeros((), jnp.int32), jnp.float32(peak), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: PeakState, params: Any = None) -> tuple[Any, PeakState]:
        rates = {own: state.peak * own(state.taken) for own in dict.fromkeys([schedule, *by_path.values()])}

        def scale(path: Any, u: jax.Array) -> jax.Array:
            return -rates[by_path[path_string(path)]].astype(u.dtype) * u

        scaled = jax.tree_util.tree_map_with_path(scale, updates)
        return scaled, PeakState(optax.safe_increment(state.taken), state.peak, rates[schedule])

    return optax.GradientTransformation(init, update)


def with_peak(opt_state: optax.OptState, learning_rate: float | jax.Array) -> optax.OptState:
    """Returns the state with another peak learning rate; raises KeyError where the optimizer carries none."""
    return optax.tree.set(opt_state, peak=jnp.asarray(learning_rate, jnp.float32))
