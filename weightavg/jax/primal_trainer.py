"""The compiled functions of a run that trains at an average.

The optimizer's iterate z and the average x are in the state of the optimizer;
the parameters are y (`weightavg.jax.primal`).
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from weightavg import spec
from weightavg.interpolation_checks import (
  DEFAULT_REFRESH_EVERY,
  momentum_warning,
)
from weightavg.jax import coefficients, trees
from weightavg.jax.evaluation import eval_params
from weightavg.jax.model_state import in_nest
from weightavg.jax.pace import Pace
from weightavg.jax.primal import primal_average
from weightavg.jax.recursive import lerp
from weightavg.jax.run_state import RunState, TrainState
from weightavg.jax.trainer import Trainer
from weightavg.optimizers import Optimizer
from weightavg.schemes import Ema, ScheduleFree
from weightavg.submission_config import SubmissionConfig


class PrimalTrainer(Trainer):
  """A `Trainer` whose optimizer steps z, with gradients at y; x is shown.

  `TrainState.averages` holds the running statistics of x, in float32 at least:
  averages of those of y with the coefficients c (`averaged`), or what forward
  passes at x have left behind (`refreshed`). With `current`, and for a model
  without running statistics, it is an empty tuple, and the statistics of y are
  shown.

  Args:
    workload: the host's.
    config: of the submission, with an interpolation.
    optimizer: of the submission.
    is_self_tuning: whether no point was given.

  Raises:
    ValueError: for a setting that JAX does not have.
  """

  def __init__(
    self,
    workload: spec.Workload,
    config: SubmissionConfig,
    optimizer: Optimizer,
    is_self_tuning: bool = False,
  ) -> None:
    super().__init__(workload, config, optimizer, is_self_tuning)
    self._mu = config.averaging.interpolation
    self._batch_norm = config.averaging.batch_norm
    self._refresh_every = (
      config.averaging.averaging_refresh_every or DEFAULT_REFRESH_EVERY
    )
    self._accumulator_dtype: Any = None
    momentum = 1.0 - getattr(config.optimizer, 'one_minus_beta1', 1.0)
    self._compiled_refresh = jax.jit(
      self._refreshed, out_shardings=self._everywhere
    )
    warning = momentum_warning(self._mu, optimizer.name, momentum)
    if warning is not None:
      warnings.warn(warning, stacklevel=4)

  def init(self, params: Any, model_state: Any, choice: Any = ()) -> RunState:
    """Make the state before the first step, from copies."""
    # x is computed from y and z, which 16 bits would not let.
    if any(map(trees.is_narrow, jax.tree.leaves(params))):
      self._accumulator_dtype = jnp.float32
    return super().init(params, model_state, choice)

  def _transformation(self, pace: Pace) -> optax.GradientTransformation:
    is_weighted = isinstance(self.scheme, ScheduleFree)
    is_ema = isinstance(self.scheme, Ema)
    return primal_average(
      super()._transformation(pace),
      # A horizon follows T, which the clock may change.
      partial(coefficients.of_share, pace.share) if is_ema else self.scheme,
      self._mu,
      learning_rate=pace.learning_rate if is_weighted else None,
      every=jnp.asarray(pace.every),
      start=jnp.asarray(pace.start),
      accumulator_dtype=self._accumulator_dtype,
    )

  def _init_averages(self, params: Any, model_state: Any) -> Any:
    del params
    if self._batch_norm == 'current' or not jax.tree.leaves(model_state):
      return ()
    return trees.map_averaged(_wide, model_state)

  def _step(
    self, state: TrainState, batch: dict[str, Any], rng: Any, pace: Pace
  ) -> tuple[TrainState, jax.Array, jax.Array]:
    new, loss, norm = super()._step(state, batch, rng, pace)
    if not jax.tree.leaves(state.model_state):
      return new, loss, norm
    # The batch of a step that was left out leaves running statistics alone, as
    # one does that would make them NaN for ever.
    is_made = new.optimizer.num_skipped == state.optimizer.num_skipped
    is_made &= trees.all_finite(new.model_state)
    # A branch: a choice between values would be fused with their computation,
    # which then rounds otherwise.
    statistics = jax.lax.cond(
      is_made,
      lambda new, old: new,
      lambda new, old: old,
      new.model_state,
      state.model_state,
    )
    return new._replace(model_state=statistics), loss, norm

  def _next_averages(
    self, before: TrainState, after: TrainState, pace: Pace
  ) -> Any:
    del pace
    if not jax.tree.leaves(after.averages):
      return after.averages
    # A batch that is not finite leaves them alone.
    is_finite = trees.all_finite(after.model_state)
    c = after.optimizer.coefficient
    if self._batch_norm == 'refreshed':
      # The first sample has those of y.
      c = (before.optimizer.num_samples == 0).astype(c.dtype)
    c = jnp.where(is_finite, c, 0.0)

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
      if trees.is_averaged(old):
        new = lerp(old, new, c)
      return jnp.where(c > 0.0, new, old)

    return jax.tree.map(move, after.averages, after.model_state)

  def _after_step(
    self, train: TrainState, batch: dict[str, Any], rng: Any
  ) -> TrainState:
    """Refresh the running statistics of x, where that is due.

    A program of its own: in a branch of the step, the CPU backend runs
    convolutions slower, and the whole takes longer to compile.
    """
    is_kept = bool(jax.tree.leaves(train.averages))
    is_due = self._steps % self._refresh_every == 0
    if self._batch_norm != 'refreshed' or not is_kept or not is_due:
      return train
    statistics = self._compiled_refresh(train, batch, rng)
    return train._replace(averages=statistics)

  def _refreshed(
    self, state: TrainState, batch: dict[str, Any], rng: Any
  ) -> Any:
    """Running statistics of x after a forward pass at x."""
    _, moved = self._workload.model_fn(
      eval_params(state.optimizer, state.params),
      batch,
      _like(state.averages, state.model_state),
      spec.ForwardPassMode.TRAIN,
      rng,
      update_batch_norm=True,
      **self.config.regularization.model_options,
    )
    moved = in_nest(moved, state.model_state)
    enters = trees.all_finite(moved) & (state.optimizer.num_samples > 0)
    return jax.tree.map(
      lambda old, new: jnp.where(enters, new.astype(old.dtype), old),
      state.averages,
      moved,
    )

  def _counted_skips(self, train: TrainState) -> jax.Array:
    return train.optimizer.num_skipped

  def _shown(self, state: TrainState, which: int) -> tuple[Any, Any]:
    del which
    average = eval_params(state.optimizer, state.params)
    if not jax.tree.leaves(state.averages):
      return average, state.model_state
    has_samples = state.optimizer.num_samples > 0
    statistics = jax.tree.map(
      lambda kept, own: jnp.where(has_samples, kept, own),
      _like(state.averages, state.model_state),
      state.model_state,
    )
    return average, statistics


def _wide(leaf: Any) -> jax.Array:
  dtype = trees.average_dtype(jnp.result_type(leaf))
  return jnp.array(leaf, dtype, copy=True)


def _like(statistics: Any, model_state: Any) -> Any:
  """Statistics in the dtypes of the model's."""
  return jax.tree.map(
    lambda kept, own: kept.astype(jnp.result_type(own)), statistics, model_state
  )
