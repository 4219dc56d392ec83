"""The compiled functions of one run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from weightavg import spec
from weightavg.averaging_config import AveragingConfig
from weightavg.jax import identity, run_state, trees
from weightavg.jax.averages import Averages
from weightavg.jax.model_state import in_nest
from weightavg.jax.pace import Pace, Pacer
from weightavg.jax.run_state import RunState, TrainState
from weightavg.optimizers import Optimizer
from weightavg.schemes import Auto, Raw
from weightavg.submission_config import SubmissionConfig
from weightavg.workloads import batch_size_of

# The rows of a run's measurements: every step up to the first of these, then
# multiples of the second.
_LOG_FIRST_STEPS = 100
_LOG_EVERY_STEPS = 500
# As torch.nn.utils.clip_grad_norm_.
_CLIP_EPSILON = 1e-6


class Trainer:
  """Trains, averages and shows the weights of one run.

  One function is compiled for a step and one for an evaluation, when they are
  first called. Batches are divided over all devices, the weights and the
  optimizer's state are replicated, and a step donates the state that it is
  given: its buffers are reused.

  Args:
    workload: the host's.
    config: of the submission.
    optimizer: of the submission; `build` takes a learning rate, traced or not,
      and the optimizer's configuration.
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
    _check(config.averaging)
    self.config = config
    self._workload = workload
    epoch = _steps_per_epoch(workload, config, optimizer)
    self.pacer = Pacer(workload, config, is_self_tuning, epoch)
    self.budget = self.pacer.budget
    self._optimizer = optimizer
    _, self.scheme = config.averaging.resolve(self.budget, epoch)
    # An average that takes part in training is kept by the optimizer.
    self._watches = not config.averaging.interpolation
    self.averages = Averages(self.scheme if self._watches else Raw())
    self.mesh = run_state.batch_mesh()
    self._everywhere = NamedSharding(self.mesh, PartitionSpec())
    # Set by `init`: shapes, for checks and placement of restored states.
    self._like: Any = None
    self._shardings: Any = None
    # The state that was returned last: another one comes from a checkpoint.
    self._latest: Any = None
    # Steps of that state: reading them from the device would wait for it.
    self._steps = 0
    self._num_skipped = 0
    # Step, loss and gradient norm that are still to be logged.
    self._row: tuple[int, jax.Array, jax.Array] | None = None

  def init(self, params: Any, model_state: Any, choice: Any = ()) -> RunState:
    """Make the state before the first step, from copies."""
    trees.check_arrays(params, 'A submission')
    tx = self._transformation(self.pacer.at(0))
    train = TrainState(
      np.zeros([], np.int32),
      params,
      model_state,
      tx.init(params),
      self._init_averages(params, model_state),
    )
    state = RunState(
      np.array(self.budget, np.int32),
      train,
      self.pacer.saved(),
      choice,
      identity.encoded(self.config, self._optimizer.name),
    )
    self._like = jax.tree.map(_shape, state)._replace(
      budget=state.budget, point=state.point
    )
    is_sharded = self.config.averaging.averaging_placement == 'sharded'
    self._shardings = run_state.state_shardings(
      self._like.train, self.mesh, is_sharded
    )
    self._compiled_step = jax.jit(
      self._step,
      donate_argnums=0,
      out_shardings=(self._shardings, self._everywhere, self._everywhere),
    )
    self._compiled_shown = jax.jit(
      self._shown, static_argnums=1, out_shardings=self._everywhere
    )
    return self.returned(self._placed(state))

  def own(self, state: RunState) -> RunState:
    """Take over a state; one from a checkpoint is checked and placed.

    Raises:
      ValueError: for the state of another submission, model, budget or point.
    """
    if state is self._latest:
      return state
    state = run_state.restored(state, self._like)
    self.pacer.restore(state.clock)
    self._steps = int(state.train.step)
    return self.returned(self._placed(state))

  def follow_plan(self, state: RunState) -> None:
    """Take over the plan of a state from a checkpoint, before `own` does."""
    if self.pacer.clock is not None and state is not self._latest:
      self.pacer.restore(run_state.restored(state, self._like).clock)

  def returned(self, state: RunState) -> RunState:
    """Remember a state as this process's own."""
    self._latest = state
    return state

  def _placed(self, state: RunState) -> RunState:
    def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
      # The caller may keep what a step would donate. device_put alone may give
      # the first of several devices the caller's own buffer.
      if isinstance(leaf, jax.Array):
        return jax.device_put(jnp.copy(leaf), sharding)
      return jax.device_put(leaf, sharding, may_alias=False)

    train = jax.tree.map(placed, state.train, self._shardings)
    choice = jax.tree.map(np.asarray, state.choice)
    budget, clock = np.asarray(state.budget), np.asarray(state.clock)
    return RunState(budget, train, clock, choice, np.asarray(state.point))

  def step(
    self,
    state: RunState,
    batch: dict[str, Any],
    rng: Any,
    global_step: int,
    billed: float = 0.0,
  ) -> RunState:
    """Make one step; the arrays of `state` are used up.

    Args:
      state: owned by this run.
      batch: of all devices.
      rng: key of the step.
      global_step: of the host, for logs.
      billed: seconds that the host has billed so far, if it tells.
    """
    clock = self.pacer.clock
    is_planned = clock is not None and clock.begin_step(billed)
    batch = run_state.put_batch(batch, self.mesh)
    train, loss, norm = self._compiled_step(
      state.train, batch, rng, self.pacer.at(self._steps)
    )
    self._steps += 1
    train = self._after_step(train, batch, rng)
    # Wait for the step before while the devices are busy with this one.
    self.flush()
    if clock is not None and is_planned:
      self._append({'planned_steps': clock.plan.total}, global_step)
    if global_step <= _LOG_FIRST_STEPS or global_step % _LOG_EVERY_STEPS == 0:
      self._row = global_step, loss, norm
    return self.returned(state._replace(train=train))

  def lower(
    self, state: RunState, batch: dict[str, Any], rng: Any
  ) -> jax.stages.Lowered:
    """Lower a step without making it: for the compiler's own analysis."""
    batch = run_state.put_batch(batch, self.mesh)
    pace = self.pacer.at(self._steps)
    return self._compiled_step.lower(state.train, batch, rng, pace)

  def pause(self, state: RunState) -> RunState:
    """Stop the clock before an evaluation, and keep its plan in the state."""
    if self.pacer.clock is None:
      return state
    self.pacer.clock.pause()
    return self.returned(state._replace(clock=self.pacer.saved()))

  def _append(self, metrics: dict[str, float], global_step: int) -> None:
    if self._workload.metrics_logger is not None:
      self._workload.metrics_logger.append_scalar_metrics(metrics, global_step)

  def flush(self) -> None:
    """Log the row of the step before, and wait until it is computed."""
    if self._row is None:
      return
    (global_step, loss, norm), self._row = self._row, None
    metrics = {'loss': float(loss), 'grad_norm': float(norm)}
    self._append(metrics, global_step)
    logging.info(
      '%d) loss = %0.3f, grad_norm = %0.3f',
      global_step,
      metrics['loss'],
      metrics['grad_norm'],
    )

  def _transformation(self, pace: Pace) -> optax.GradientTransformation:
    """Build the optimizer of a step."""
    return self._optimizer.build(pace.learning_rate, self.config.optimizer)

  def _init_averages(self, params: Any, model_state: Any) -> Any:
    """Make what `TrainState.averages` holds before the first step."""
    return self.averages.init(self._values(params, model_state))

  def _next_averages(
    self, before: TrainState, after: TrainState, pace: Pace
  ) -> Any:
    """Compute what `TrainState.averages` holds after a step.

    Args:
      before: the state before the step.
      after: the state after it, but for its averages.
      pace: numbers of the step.
    """
    del before
    values = self._values(after.params, after.model_state)
    return self.averages.update(
      after.averages, values, after.step, pace.every, pace.start
    )

  def _after_step(
    self, train: TrainState, batch: dict[str, Any], rng: Any
  ) -> TrainState:
    """Do what some steps only need, by programs of its own.

    Args:
      train: the state after the step, which may be used up.
      batch: of the step, on the devices.
      rng: key of the step.
    """
    del batch, rng
    return train

  def _counted_skips(self, train: TrainState) -> jax.Array:
    """Number of samples left out as not finite."""
    return train.averages.num_skipped

  def _values(self, params: Any, model_state: Any) -> tuple[Any, Any]:
    """The tree that is averaged: running statistics beside the weights."""
    averaged = self.config.averaging.batch_norm == 'averaged'
    return params, model_state if averaged else None

  def _step(
    self, state: TrainState, batch: dict[str, Any], rng: Any, pace: Pace
  ) -> tuple[TrainState, jax.Array, jax.Array]:
    regularization = self.config.regularization

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
      logits, model_state = self._workload.model_fn(
        # By position: the benchmark's language model has its own names.
        params,
        batch,
        state.model_state,
        spec.ForwardPassMode.TRAIN,
        rng,
        update_batch_norm=True,
        **regularization.model_options,
      )
      losses = self._workload.loss_fn(
        label_batch=batch['targets'],
        logits_batch=logits,
        mask_batch=batch.get('weights'),
        label_smoothing=regularization.label_smoothing,
      )
      # At least float32: bfloat16 cannot count to 257. A batch without a valid
      # example gives zero gradients.
      summed = losses['summed']
      wide = jnp.promote_types(summed.dtype, jnp.float32)
      total = jnp.asarray(losses['n_valid_examples'], wide)
      return summed.astype(wide) / jnp.maximum(total, 1.0), model_state

    (loss, model_state), gradients = jax.value_and_grad(
      mean_loss, has_aux=True
    )(state.params)
    norm = _norm(gradients)
    if regularization.grad_clip is not None:
      scale = regularization.grad_clip / (norm + _CLIP_EPSILON)
      scale = jnp.minimum(scale, 1.0)
      gradients = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
    tx = self._transformation(pace)
    updates, optimizer = tx.update(gradients, state.optimizer, state.params)
    new = state._replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state=in_nest(model_state, state.model_state),
      optimizer=optimizer,
    )
    averages = self._next_averages(state, new, pace)
    return new._replace(averages=averages), loss, norm

  def _shown(self, state: TrainState, which: int) -> tuple[Any, Any]:
    values = self._values(state.params, state.model_state)
    params, statistics = self.averages.shown(state.averages, values, which)
    averaged = self.config.averaging.batch_norm == 'averaged'
    return params, statistics if averaged else state.model_state

  def chosen(self, state: RunState) -> int:
    """Index of the candidate that evaluation sees; -1 for the raw weights."""
    del state
    return 0

  def shown(self, state: RunState, which: int) -> tuple[Any, Any]:
    """Return the parameters and running statistics that evaluation sees.

    Args:
      state: owned by this run.
      which: index of the candidate; -1 for the raw weights.
    """
    self.flush()
    # Steps that are still under way, and the average, are not for the
    # evaluation to wait for, which is not billed.
    jax.block_until_ready(state.train)
    shows_raw = self._watches and not self.averages.keeps_any
    if shows_raw or which < 0:
      return state.train.params, state.train.model_state
    skipped = int(self._counted_skips(state.train))
    if skipped > self._num_skipped:
      logging.warning(
        'The weights were not finite at a sample and did not enter the '
        'average (%d samples skipped so far).',
        skipped,
      )
    self._num_skipped = skipped
    return jax.block_until_ready(self._compiled_shown(state.train, which))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


def _norm(tree: Any) -> jax.Array:
  # optax's own has another name in every other release. At least float32: the
  # square of 256 is too large for float16.
  def squares(g: jax.Array) -> jax.Array:
    real = jnp.abs(g) if jnp.iscomplexobj(g) else g
    return jnp.sum(jnp.square(real.astype(trees.average_dtype(real.dtype))))

  return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree))))


def _check(config: AveragingConfig) -> None:
  """Raise ValueError for a setting that JAX does not have."""
  if config.averaging_placement not in ('device', 'sharded'):
    raise ValueError(
      f'Invalid averaging_placement={config.averaging_placement!r}. Must be '
      'one of device, sharded in JAX.'
    )
  if config.averaging_swap != 'exchange':
    raise ValueError(
      f'Invalid averaging_swap={config.averaging_swap!r}. It has no effect in '
      'JAX.'
    )
  if not config.averaging_checkpoints and not isinstance(config.scheme, Auto):
    raise ValueError(
      'Invalid averaging_checkpoints=False. It has no effect in JAX without '
      "averaging_scheme='auto'."
    )


def _steps_per_epoch(
  workload: spec.Workload, config: SubmissionConfig, optimizer: Optimizer
) -> int | None:
  """One epoch in steps, for a scheme that samples once per epoch."""
  if config.averaging.scheme.cadence_key is None:
    return None
  batch_size = batch_size_of(workload, optimizer.get_batch_size)
  return max(1, workload.num_train_examples // batch_size)
