"""The averages that follow the runs of the claims.

Every kind of run has one fixed set, so that claims share runs.
"""

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

from lab.offline import batch_norm
from lab.run.trial import TrialRun
from lab.studies.parts import tables, tuned
from lab.studies.parts.averages import Averages
from lab.workloads import build_workload
from weightavg.pytorch import models

RAW = 'raw'
# Horizon to cadence: those of the searches.
CADENCE = tuned.HORIZONS
POWERS = (4.0, 9.0)
# Kaddour's epoch as a fraction of T: 90 epochs on ImageNet.
# It is not a pass: a short run would memorise a ninetieth of its data.
EPOCHS = 90
# Kaddour's window and longer ones, in epochs.
WINDOW, WINDOWS = 6, (6, 16, 32)
UNIFORM = 'uniform from the start'

Fields = dict[str, Any]
Candidates = dict[str, Fields]


def name_of(scheme: str, horizon: float) -> str:
  """Name of an average of a horizon.

  >>> name_of('ema', 0.01)
  'ema 1 %'
  """
  return f'{scheme} {tables.percent(horizon)}'


def label(name: str) -> str:
  """Name of an average in texts.

  >>> label('ema 1 %'), label('polynomial 4')
  ('EMA 1 %', 'polynomial 4')
  """
  kind, _, rest = name.partition(' ')
  return f'{kind.upper()} {rest}' if kind in ('ema', 'lawa') else name


def of_horizons(
  horizons: Iterable[float], schemes: Iterable[str] = ('ema', 'lawa')
) -> Candidates:
  """Averages by name."""
  return {
    name_of(scheme, horizon): {
      'averaging_scheme': scheme,
      'averaging_horizon': horizon,
      'averaging_every': CADENCE[horizon],
    }
    for scheme in schemes
    for horizon in horizons
  }


def polynomial(power: float) -> str:
  """Name of a polynomial average."""
  return f'polynomial {power:g}'


def window(epochs: int, scheme: str = 'lawa') -> str:
  """Name of an average that samples once per epoch."""
  return f'{scheme} {epochs} epochs'


_RAW: Candidates = {RAW: {'averaging_scheme': 'none'}}
_POLYNOMIAL: Candidates = {
  polynomial(power): {
    'averaging_scheme': 'polynomial',
    'averaging_power': power,
  }
  for power in POWERS
}
STANDARD = _RAW | of_horizons((0.01, 0.03, 0.1)) | _POLYNOMIAL
WIDE = _RAW | of_horizons(CADENCE) | _POLYNOMIAL
# Windows, an EMA as long as the first one, and the mean of everything.
WINDOWED: Candidates = {
  name: fields | {'averaging_every': 1 / EPOCHS}
  for name, fields in (
    {
      window(epochs): {'averaging_scheme': 'lawa', 'lawa_window': epochs}
      for epochs in WINDOWS
    }
    | {
      window(WINDOW, 'ema'): {
        'averaging_scheme': 'ema',
        'ema_decay': 1 - 1 / WINDOW,
      },
      UNIFORM: {'averaging_scheme': 'polynomial', 'averaging_power': 0.0},
    }
  ).items()
}

# Salt of the training batches that running statistics are recomputed on.
_SALT = 20220929
_BATCHES = 50
# What the submission itself shows to an evaluation, where it averages.
EVALUATED = 'evaluated'
# Endings of names: whose running statistics an average is evaluated with.
CURRENT, RECOMPUTED = 'current', 'recomputed'


class Followed(Averages):
  """Averages of a run, measured at some of its evaluations.

  Where the submission shows an average of its own, that is measured as
  'evaluated', and 'raw' are the weights from which it trains on.

  Args:
    candidates: as in `Averages`.
    evaluated_from: fraction of the budget before which nothing is measured.
    every: of so many evaluations one is measured; the last step always is.
    recomputed: candidates that are measured once more, as '<name> recomputed',
      with running statistics of BatchNorm recomputed on training batches.
  """

  rule: ClassVar[tuple[str, ...]] = (
    *Averages.rule,
    Averages.__module__,
    batch_norm.__name__,
  )

  def __init__(
    self,
    candidates: Candidates,
    evaluated_from: float = 0.0,
    every: int = 1,
    recomputed: Iterable[str] = (),
  ) -> None:
    super().__init__(candidates, evaluated_from)
    self._from, self._every = evaluated_from, every
    self._recomputed = tuple(recomputed)
    self._due = 0

  def at_start(self, run: TrialRun) -> None:
    """Make the averages and open the stream of further training batches."""
    super().at_start(run)
    trial = run.trial
    if self._recomputed:
      self._further = build_workload(trial.workload.name)._build_input_queue(
        (trial.rng_seed, _SALT), 'train', '', trial.batch_size
      )

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Measure every average if this evaluation is one of those measured."""
    step, budget = run.state.global_step, run.trial.budget
    self._due += 1
    skipped = self._due % self._every != 0 or step < self._from * budget
    if skipped and step < budget:
      return True
    own = run.state.optimizer_state['averager']
    if not own.swapped:
      self._measure_all(run, rng)
      return True
    seconds = run.state.train_state['accumulated_submission_time']
    curve = self._curves['validation'].setdefault(EVALUATED, [])
    curve.append([step, seconds, run.measure('validation', rng)])
    own.swap_out()
    self._measure_all(run, rng)
    own.swap_in()
    return True

  def _measure_all(self, run: TrialRun, rng: Any) -> None:
    super().instead_of_evaluation(run, rng)
    for name in self._recomputed:
      self._recompute(name, run, rng)

  def _recompute(self, name: str, run: TrialRun, rng: Any) -> None:
    """Measure an average with other running statistics.

    The next swap brings its own ones back.
    """
    averager = self._averagers[name]
    with averager.evaluating():
      state = run.state
      batch_norm.recompute(
        run.trial.workload,
        state.model_params,
        state.model_state,
        self._further,
        _BATCHES,
        rng,
      )
      value = run.measure('validation', rng)
    curves = self._curves['validation']
    curve = curves.setdefault(f'{name} {RECOMPUTED}', [])
    curve.append([*curves[name][-1][:2], value])


@functools.cache
def has_batch_norm(workload: str) -> bool:
  """Tell if a workload's model has running statistics."""
  model, _ = build_workload(workload).init_model_fn((0, 0))
  return any(models.running_statistics(model))
