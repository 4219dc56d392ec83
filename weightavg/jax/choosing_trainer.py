"""The compiled functions of a run that chooses among averages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from weightavg import spec
from weightavg.jax import probes, run_state, selection
from weightavg.jax.probes import Batch
from weightavg.jax.run_state import ChoiceState, RunState
from weightavg.jax.trainer import Trainer
from weightavg.optimizers import Optimizer
from weightavg.schemes import Auto
from weightavg.submission_config import SubmissionConfig


class ChoosingTrainer(Trainer):
  """A `Trainer` that also keeps a probe and chooses by its losses.

  Args:
    workload: the host's.
    config: of the submission, whose scheme is `auto`.
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
    scheme = config.averaging.scheme
    assert isinstance(scheme, Auto), 'the submission gives the scheme'
    self._auto = scheme
    self._renew(self.budget)
    if self.pacer.clock is not None:
      self.pacer.clock.add_follower(self._renew)
    self._saves_probe = config.averaging.averaging_checkpoints
    self._compiled_losses = jax.jit(self._losses)
    # The probe in the nest of a batch, and its number.
    self._probe: Batch | None = None
    self._number = -1

  def _renew(self, total: int) -> None:
    """Set a probe aside as often as in a budget of T steps."""
    self._every = self._auto.probe_every_steps(total)

  def init(self, params: Any, model_state: Any, choice: Any = ()) -> RunState:
    """Make the state before the first step, from copies."""
    del choice
    none = np.array(-1, np.int32), np.array(0, np.int32), probes.NO_PROBE
    first = selection.init_selection(len(self.averages.names))
    return super().init(params, model_state, ChoiceState(first, *none))

  def is_probe_due(self, state: RunState, global_step: int) -> bool:
    """Tell if the step that begins now has to set a new probe aside."""
    self.follow_plan(state)
    is_saved = np.shape(state.choice.probe)[-1] > probes.NO_PROBE.size
    # A saved probe is read in the next step, if it fits the batches.
    is_read = self._number == np.max(state.choice.probe_number)
    is_missing = self._probe is None and (is_read or not is_saved)
    return is_missing or global_step % self._every == 0

  def fit(self, state: RunState, batch: Batch) -> None:
    """Read a restored probe in the nest of a training batch."""
    number = int(state.choice.probe_number)
    if number != self._number:
      self._probe = probes.decode(state.choice.probe, batch)
      self._number = number

  def set_aside(self, state: RunState, batch: Batch, rng: Any) -> RunState:
    """Keep the first examples of a batch; the old probe goes.

    Raises:
      ValueError: at the first probe, if the batch has fewer examples than were
        asked for, or the workload's loss cannot be computed on it.
    """
    available = probes.num_examples(batch)
    examples = self._auto.probe_examples
    if self._probe is None and examples is not None and examples > available:
      raise ValueError(
        f'Invalid averaging_probe_examples={examples}. Must be at most the '
        f'batch size, {available}.'
      )
    count = -(-available // 4) if examples is None else examples
    probe = probes.first_examples(batch, count)
    if self._probe is None:
      self._check_loss(state, probe, rng)
    number = int(state.choice.probe_number) + 1
    self._probe, self._number = probe, number
    saved = probes.encode(probe) if self._saves_probe else probes.NO_PROBE
    choice = state.choice._replace(
      probe_number=np.array(number, np.int32), probe=saved
    )
    return self.returned(state._replace(choice=choice))

  def choose(self, state: RunState, rng: Any, global_step: int) -> RunState:
    """Choose by the losses of all candidates on the probe.

    A second call after the same step has nothing new to choose by.
    """
    step = int(state.train.step)
    is_new = step != int(state.choice.chosen_at)
    has_samples = int(state.train.averages.num_samples) > 0
    if self._probe is None or not is_new or not has_samples:
      return state
    probe = run_state.put_batch(self._probe, self.mesh)
    rows = []
    for which in range(len(self.averages.names)):
      params, statistics = self.shown(state, which)
      losses, elements = self._compiled_losses(params, statistics, probe, rng)
      rows.append(losses)
    chosen = selection.select(
      jnp.stack(rows),
      state.choice.selection,
      self._number,
      self._auto.probe_memory,
      jnp.asarray(probes.valid_examples(self._probe)),
      elements,
    )
    chosen = jax.tree.map(np.asarray, chosen)
    choice = state.choice._replace(
      selection=chosen, chosen_at=np.array(step, np.int32)
    )
    self._log(chosen, global_step)
    return self.returned(state._replace(choice=choice))

  def chosen(self, state: RunState) -> int:
    """Index of the candidate of the last choice; -1 for the raw weights."""
    return int(state.choice.selection.chosen)

  def _losses(
    self, params: Any, model_state: Any, batch: Batch, rng: Any
  ) -> tuple[jax.Array, jax.Array]:
    """Loss of each example in evaluation mode, and the number of elements.

    Returns:
      Losses [examples], summed over an example's elements (the tokens of a
      sequence), zero where masked; a scalar.
    """
    logits, _ = self._workload.model_fn(
      # By position: the benchmark's language model has its own names.
      params,
      batch,
      model_state,
      spec.ForwardPassMode.EVAL,
      rng,
      update_batch_norm=False,
      dropout_rate=0.0,
    )
    loss = self._workload.loss_fn(
      label_batch=batch['targets'],
      logits_batch=logits,
      mask_batch=batch.get('weights'),
    )
    losses = loss['per_example']
    losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    losses = losses.reshape(losses.shape[0], -1).sum(1)
    return losses, jnp.asarray(loss['n_valid_examples'], losses.dtype)

  def _check_loss(self, state: RunState, probe: Batch, rng: Any) -> None:
    """Fail in the first step, not at the first evaluation."""
    name = type(self._workload).__name__
    try:
      losses, _ = jax.eval_shape(
        self._losses, state.train.params, state.train.model_state, probe, rng
      )
    except Exception as error:
      # A workload may fail in any way.
      raise ValueError(
        f'Cannot choose among averages: the loss of {name} cannot be computed '
        f'in evaluation mode ({type(error).__name__}: {error}).'
      ) from error
    if losses.shape[0] != probes.num_examples(probe):
      raise ValueError(
        f'Cannot choose among averages: {name} gives {losses.shape[0]} losses '
        f'for {probes.num_examples(probe)} examples.'
      )

  def _log(self, chosen: Any, global_step: int) -> None:
    """Log the choice and the losses, beside the run's other measurements."""
    means = np.asarray(selection.mean_losses(chosen.latest)).tolist()
    losses = dict(zip(self.averages.names, means, strict=True))
    metrics = {f'probe_loss/{name}': loss for name, loss in losses.items()}
    which = int(chosen.chosen)
    metrics['averaging_choice'] = which
    self._append(metrics, global_step)
    logging.info(
      '%d) evaluation sees %s; losses on the probe: %s',
      global_step,
      'raw (no finite loss)' if which < 0 else self.averages.names[which],
      ', '.join(f'{name} {loss:.4g}' for name, loss in losses.items()),
    )
