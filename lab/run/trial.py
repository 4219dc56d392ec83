"""One trial: the benchmark's loop, its order of calls and its clock.

Billed are data selection, `update_params` and `prepare_for_eval`; evaluation,
checkpoints and logging are not. Two things differ from the benchmark:
evaluations come every so many steps instead of seconds, and torch's generators
are seeded from the step's own random state, so that a run repeats exactly and
a resumed one equals one that was never interrupted.
"""

import os
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from absl import logging

from lab.core import checkpoint_files, choice_columns, logs
from lab.core.host_types import is_training_complete
from lab.core.progress import Progress
from lab.run import checkpoints, light_checkpoints, random_utils
from lab.run.interruption import Interrupted, Interruption
from lab.run.observers import Observer, Observers
from lab.run.run_state import RunState
from lab.run.trial_setup import Streams, Trial, initial_state, streams
from weightavg.pytorch.profiling import section

# The local workloads read no files; AlgoPerf's signatures ask for a folder.
NO_DATA_DIR = ''


def _skip(queue: Iterator[Any], count: int) -> None:
  """Pass over the batches that were used before the checkpoint."""
  if hasattr(queue, 'skip'):
    queue.skip(count)
    return
  for _ in range(count):
    next(queue)


class _CountedQueue(Iterator[Any]):
  """Counts batches: a submission may draw more than one in a step."""

  def __init__(self, queue: Iterator[Any], train_state: dict[str, Any]) -> None:
    self._queue = queue
    self._train_state = train_state

  def __next__(self) -> Any:
    batch = next(self._queue)
    self._train_state['batches_drawn'] += 1
    return batch


class TrialRun:
  """Runs a trial from its start or from its last checkpoint.

  Args:
    trial: The trial.
    flag_values: The command line as it is to be recorded.
    observers: Receive the run's events, in order.
    interruption: Tells if a signal has arrived, on any rank; None ignores it.
  """

  def __init__(
    self,
    trial: Trial,
    flag_values: dict[str, Any],
    observers: Sequence[Observer] = (),
    interruption: Interruption | None = None,
  ) -> None:
    self.trial = trial
    self._interruption = interruption
    self._signal = 0
    self._saved_at: int | None = None
    self.flag_values = flag_values
    self._observers = Observers(observers)
    self._is_main = trial.context.is_main
    self._logger: logs.MetricsLogger | None = None
    self._keeper: light_checkpoints.Keeper | None = None

  def run(self) -> RunState:
    """Train, evaluate and save until a goal or the budget ends the trial.

    Raises:
      Interrupted: A signal has ended it; its checkpoint is written.
      InputError: A file cannot be written; earlier checkpoints are unharmed.
    """
    trial = self.trial
    keys = streams(trial.rng_seed)
    with section('Initializing dataset'):
      queue = trial.workload._build_input_queue(
        keys.data,
        'train',
        data_dir=NO_DATA_DIR,
        global_batch_size=trial.batch_size,
      )
    self.state = initial_state(trial)
    path = trial.checkpoint
    if path is not None:
      checkpoints.restore(self.state, path, trial.context.device)
      self._saved_at = self.state.global_step
      _skip(queue, self.state.train_state['batches_drawn'])
      logging.info('Resuming from %s.', path)
      self._warn_of_an_ended_run(path)
    queue = _CountedQueue(queue, self.state.train_state)
    if self._is_main:
      self._keeper = light_checkpoints.Keeper(
        trial.settings,
        trial.directory,
        self.state.model_params,
        None if path is None else self.state.global_step,
      )
    self._open_logs(resumed=path is not None)
    self._progress = Progress(
      trial.budget, self.state.global_step, self._is_main
    )
    self._start_time = trial.context.clock()
    self._observers.at_start(self)
    self._end_step()
    while self._goes_on():
      if self._signal:
        self._stop_for_signal(keys)
      step_rng = random_utils.fold_in(keys.steps, self.state.global_step)
      self._step(queue, step_rng)
    self._progress.close()
    self._finish()
    return self.state

  def _end_step(self) -> None:
    """Note the time from which the next step is billed, and a signal."""
    own = 0 if self._interruption is None else self._interruption.signal
    self.state.train_state['last_step_end_time'], self._signal = (
      self.trial.context.clock_and_largest(own)
    )

  def _stop_for_signal(self, keys: Streams) -> NoReturn:
    """Save, unless the last evaluation has, and end the run."""
    step, directory = self.state.global_step, self.trial.directory
    saves = self.trial.settings.save_checkpoints
    if saves and step and self._saved_at != step:
      rng = random_utils.fold_in(keys.steps, step - 1)
      # What ranks share is gathered here; it is not billed.
      self._prepare_for_eval(random_utils.split(rng, 4)[2], only_saves=True)
      self._save()
    self._progress.close()
    path = checkpoint_files.path_of(directory, step) if saves and step else None
    raise Interrupted(self._signal, step, path, saves)

  def stop(self) -> None:
    """End the run after the current step, as a spent budget does."""
    self.state.train_state['training_complete'] = True

  def measure(self, split: str, rng: Any) -> float:
    """The target metric of the weights that the model holds now.

    Args:
      split: 'train', 'validation' or 'test'.
      rng: Handed to the workload.
    """
    workload = self.trial.workload
    sizes = {
      'train': workload.num_eval_train_examples,
      'validation': workload.num_validation_examples,
      'test': workload.num_test_examples,
    }
    metrics = workload._eval_model_on_split(
      'eval_train' if split == 'train' else split,
      sizes[split],
      self.trial.eval_batch_size,
      self.state.model_params,
      self.state.model_state,
      rng,
      NO_DATA_DIR,
    )
    return float(metrics[workload.target_metric_name])

  def _goes_on(self) -> bool:
    state = self.state
    goals_end_it = not self.trial.settings.run_to_budget
    return (
      state.train_state['is_time_remaining']
      and not (goals_end_it and state.goals_reached)
      and not state.train_state['training_complete']
      and state.global_step < self.trial.budget
    )

  def _warn_of_an_ended_run(self, path: str) -> None:
    """Say that a larger budget does not make an ended run go on."""
    step, budget = self.state.global_step, self.trial.budget
    if self.state.train_state['training_complete'] and step < budget:
      logging.warning(
        'Nothing is trained: the run of %s ended at step %d and does not go on '
        'to step %d. Use another --experiment_name or --overwrite.',
        path,
        step,
        budget,
      )

  def _open_logs(self, resumed: bool) -> None:
    trial, count = self.trial, self.state.preemption_count
    if not self._is_main:
      return
    checkpoints.remove_temporary(trial.directory)
    logs.write_json(
      os.path.join(trial.directory, f'meta_data_{count}.json'),
      logs.meta_data(trial.workload, trial.rng_seed),
    )
    logs.write_json(
      os.path.join(trial.directory, f'flags_{count}.json'), self.flag_values
    )
    self._logger = logs.MetricsLogger(trial.directory)
    self._logger.rewind(self.state.global_step if resumed else -1)
    trial.workload.attach_metrics_logger(self._logger)

  def _step(self, queue: Iterator[Any], step_rng: Any) -> None:
    trial, state = self.trial, self.state
    select_rng, update_rng, prepare_rng, eval_rng = random_utils.split(
      step_rng, 4
    )
    with section('Data selection'):
      batch = trial.submission.data_selection(
        trial.workload,
        queue,
        state.optimizer_state,
        state.model_params,
        state.model_state,
        trial.hyperparameters,
        state.global_step,
        select_rng,
      )
    self._observers.before_update(self, batch)
    # Torch's generators are in no checkpoint. Seeding them here makes a step's
    # dropout a function of the seed and the step alone, whatever evaluations
    # or an earlier process have drawn.
    random_utils.seed_torch(
      random_utils.torch_seed(update_rng, rank=trial.context.rank)
    )
    try:
      with section('Update parameters'):
        self._update(batch, update_rng)
    except Exception as error:
      if not is_training_complete(error):
        raise
      state.train_state['training_complete'] = True
    del batch
    state.global_step += 1
    if state.global_step >= trial.budget:
      state.train_state['training_complete'] = True
    end_time = trial.context.clock()
    state.train_state['accumulated_submission_time'] += (
      end_time - state.train_state['last_step_end_time']
    )
    self._progress.step()
    if self._keeper is not None:
      self._keeper.after_step(state.model_params, state.global_step)
    self._observers.after_step(self)
    if self._is_due(end_time):
      self._prepare_for_eval(prepare_rng)
      billed = state.train_state['accumulated_submission_time']
      state.train_state['is_time_remaining'] = billed < trial.time_limit
      replaced = self._observers.instead_of_evaluation(self, eval_rng)
      if state.train_state['is_time_remaining'] and not replaced:
        self._evaluate(eval_rng)
    self._end_step()

  def _update(self, batch: Any, rng: Any) -> None:
    trial, state = self.trial, self.state
    extra = {}
    if trial.submission.needs_train_state:
      extra['train_state'] = MappingProxyType(state.train_state)
    state.optimizer_state, state.model_params, state.model_state = (
      trial.submission.update_params(
        workload=trial.workload,
        current_param_container=state.model_params,
        current_params_types=trial.workload.model_params_types,
        model_state=state.model_state,
        hyperparameters=trial.hyperparameters,
        batch=batch,
        loss_type=trial.workload.loss_type,
        optimizer_state=state.optimizer_state,
        eval_results=state.eval_results,
        global_step=state.global_step,
        rng=rng,
        **extra,
      )
    )

  def _is_due(self, now: float) -> bool:
    """Return True if an evaluation follows this step."""
    trial, train_state = self.trial, self.state.train_state
    if trial.settings.skip_evals:
      return False
    if train_state['training_complete']:
      return True
    if trial.eval_every is not None:
      return self.state.global_step % trial.eval_every == 0
    period = trial.workload.eval_period_time_sec
    return now - train_state['last_eval_time'] >= period

  def _prepare_for_eval(self, rng: Any, only_saves: bool = False) -> None:
    trial, state = self.trial, self.state
    prepare = trial.submission.prepare_for_eval
    if only_saves:
      prepare = trial.submission.prepare_for_checkpoint
    if prepare is None:
      return
    start_time = trial.context.clock()
    with section('Prepare for eval'):
      state.optimizer_state, state.model_params, state.model_state = prepare(
        workload=trial.workload,
        current_param_container=state.model_params,
        current_params_types=trial.workload.model_params_types,
        model_state=state.model_state,
        hyperparameters=trial.hyperparameters,
        loss_type=trial.workload.loss_type,
        optimizer_state=state.optimizer_state,
        eval_results=state.eval_results,
        global_step=state.global_step,
        rng=rng,
      )
    seconds = trial.context.clock() - start_time
    if not only_saves:
      state.train_state['accumulated_submission_time'] += seconds

  def _evaluate(self, rng: Any) -> None:
    trial, state = self.trial, self.state
    train_state = state.train_state
    start_time = trial.context.clock()
    with section('Evaluation'):
      metrics = logs.plain_metrics(
        trial.workload.eval_model(
          trial.eval_batch_size,
          state.model_params,
          state.model_state,
          rng,
          NO_DATA_DIR,
          None,
          state.global_step,
        )
      )
    if trial.workload.has_reached_validation_target(metrics):
      train_state['validation_goal_reached'] = True
    if trial.workload.has_reached_test_target(metrics):
      train_state['test_goal_reached'] = True
    end_time = trial.context.clock()
    train_state['last_eval_time'] = end_time
    train_state['accumulated_eval_time'] += end_time - start_time
    metrics['score'] = train_state['accumulated_submission_time']
    metrics['total_duration'] = end_time - self._start_time
    for key in ('submission', 'eval', 'logging'):
      name = f'accumulated_{key}_time'
      metrics[name] = train_state[name]
    self._observers.at_evaluation(self, metrics)
    state.eval_results.append((state.global_step, metrics))
    self._progress.say(self._line(metrics))
    start_time = trial.context.clock()
    self._log(metrics, is_eval=True)
    self._save()
    train_state['accumulated_logging_time'] += (
      trial.context.clock() - start_time
    )

  def _line(self, metrics: dict[str, Any]) -> str:
    """Format the log line of an evaluation."""
    name = self.trial.workload.target_metric_name
    value = metrics.get(f'validation/{name}', float('nan'))
    target = self.trial.workload.validation_target_value
    # What a submission has logged last, in `prepare_for_eval`.
    logged = None if self._logger is None else self._logger.last
    chosen = None if logged is None else choice_columns.chosen(logged)
    return (
      f'step {self.state.global_step}/{self.trial.budget}  '
      f'validation/{name} {value:.5g} (target {target:.5g})  '
      f'billed {metrics["score"]:.1f} s'
      + (f'  average {chosen}' if chosen is not None else '')
    )

  def _log(self, metrics: dict[str, Any], is_eval: bool) -> None:
    if self._logger is None:
      return
    with section('Logging'):
      self._logger.append_scalar_metrics(
        metrics,
        global_step=self.state.global_step,
        preemption_count=self.state.preemption_count,
        is_eval=is_eval,
      )

  def _save(self) -> None:
    # Rank 0 alone calls state_dict and writes; the clock that is read next
    # keeps the others waiting until the file is there.
    settings = self.trial.settings
    self._saved_at = self.state.global_step
    if self._keeper is None or not settings.save_checkpoints:
      return
    with section('Checkpoint'):
      if self._logger is not None:
        self._logger.sync()
      self._keeper.before_checkpoint(self.state.global_step)
      checkpoints.save(
        self.state,
        self.trial.directory,
        keep_all=settings.save_intermediate_checkpoints,
      )

  def _finish(self) -> None:
    """Log the score and save once more, as the benchmark does."""
    score = self.state.train_state['accumulated_submission_time']
    self._log({'score': score}, is_eval=False)
    self._save()
    self.trial.context.barrier()
