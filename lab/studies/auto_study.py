"""Whether the choice among averages is a good one: `make auto-study`.

For each local workload, seed, learning rate and schedule, `nadamw_auto` is
trained once; each evaluation looks at every candidate and notes which one the
submission has chosen. Averages never touch training, so that the curve of a
candidate is what its own submission would have on these batches, and auto's
curve is, bit for bit, that of the runner. Beside it choose, by other rules and
probes, MEMORIES and ONE_BATCH; at the tuned learning rate with a cosine to zero
FOUR_BATCHES and TRAINED_ON, too. Written to --output_dir are
auto.json, a row for each run and candidate, choices.json and two figures.
Finished runs are kept in its folder runs; --report_only reports on these.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from absl import app, flags

from lab.core import curves, logs, search_space
from lab.run import submissions
from lab.run.settings import Settings
from lab.run.trial import Trial, TrialRun
from lab.studies import auto_report, auto_tables, cached_runs, study
from lab.workloads import WORKLOADS, build_workload
from weightavg.pytorch import choosing_step, selection
from weightavg.pytorch.choice import RAW
from weightavg.pytorch.probes import Batch, leaves, mapped
from weightavg.schemes import auto

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUBMISSION = 'submissions/nadamw_auto/submission.py'
LEARNING_RATE_FACTORS = (1.0, 0.5, 2.0)
SCHEDULES = ('cosine', 'cosine_to_half', 'constant')
SEEDS = (0, 1, 2, 3, 4)
# No average is at a target earlier; a row that says so is marked.
EVALUATED_FROM = 0.5
# Of what is chosen: runs of another one are made anew.
VERSION = 5
# Other rules and probes: how much the last evaluations count, and batches.
MEMORIES = {
  'auto, memory 0': 0.0,
  'auto, memory 0.5': 0.5,
  'auto, memory 0.9': 0.9,
}
ONE_BATCH = {'1 batch, memory 0': 0.0, '1 batch, memory 0.75': 0.75}
# At one setting only.
FOUR_BATCHES = {'4 batches, memory 0': 0.0}
TRAINED_ON = {'1 batch trained on, memory 0': 0.0}
ABLATION = (*MEMORIES, *ONE_BATCH, *FOUR_BATCHES, *TRAINED_ON)
_FURTHER_BATCHES = 3
# The stream of the further batches is not that of any run.
FURTHER_SALT = 20230906

_FLAGS = flags.FLAGS


class _Overheard:
  """The submission, with the batches that pass through it within reach."""

  def __init__(self, path: str) -> None:
    self._module = submissions.load(str(ROOT / path)).module
    self.set_aside: Batch | None = None
    self.trained_on: Batch | None = None

  def __getattr__(self, name: str) -> Any:
    return getattr(self._module, name)

  def update_params(self, **kwargs: Any) -> tuple[Any, Any, Any]:
    """The submission's step."""
    batch = kwargs['batch']
    self.set_aside = batch.get(choosing_step.PROBE, self.set_aside)
    self.trained_on = {
      k: v for k, v in batch.items() if k != choosing_step.PROBE
    }
    return self._module.update_params(**kwargs)


@dataclasses.dataclass
class Chooser:
  """Another rule's or another probe's choice; it shows nothing."""

  selector: selection.Selector
  selected: int = RAW

  def choose(self, comparison: selection.Comparison, step: int) -> None:
    """The submission's own rule, from this chooser's last choice."""
    # A probe for each evaluation.
    chosen = self.selector.choose(comparison, self.selected, step, step)
    self.selected = RAW if chosen is None else chosen


def joined(batches: Sequence[Batch]) -> Batch:
  """One batch of the rows of several."""
  columns = zip(*(leaves(batch) for batch in batches), strict=True)
  whole = iter([torch.cat(parts) for parts in columns])
  return mapped(lambda _: next(whole), batches[0])


class AutoRun(TrialRun):
  """A trial whose evaluations look at every candidate, at validation only.

  A curve ends where it comes to the target.

  Args:
    trial: a trial of the submission.
    first_step: no curve begins before this step; choices are made all along.
    ablation: whether FOUR_BATCHES and TRAINED_ON choose, too.
    to_the_end: go on when all have come to the target, for the choices.
  """

  def __init__(
    self, trial: Any, first_step: float, ablation: bool, to_the_end: bool
  ) -> None:
    super().__init__(trial, {})
    self._first_step = first_step
    self._to_the_end = to_the_end
    self._arrived: set[str] = set()
    self._ablation = ablation
    rules = MEMORIES | ONE_BATCH
    if ablation:
      rules |= FOUR_BATCHES | TRAINED_ON
    self._choosers = {
      name: Chooser(selection.Selector(memory))
      for name, memory in rules.items()
    }
    self.curves: dict[str, list[list[float]]] = {}
    self.choices: dict[str, list[list[int]]] = {}
    self._further: Any = None

  def _compare(self, batch: Batch, rng: Any) -> selection.Comparison:
    state = self.state
    return choosing_step.compare_candidates(
      self.trial.workload,
      state.model_params,
      state.model_state,
      state.optimizer_state['averager'],
      batch,
      rng,
    )

  def _more_batches(self) -> list[Batch]:
    """From a stream that is not trained on."""
    trial = self.trial
    if self._further is None:
      self._further = trial.workload._build_input_queue(
        (trial.rng_seed, FURTHER_SALT), 'train', '', trial.batch_size
      )
    return [next(self._further) for _ in range(_FURTHER_BATCHES)]

  def _other_choices(self, rng: Any) -> dict[str, int]:
    module = self.trial.submission.module
    own = self.state.optimizer_state['selector'].latest
    comparisons: dict[str, selection.Comparison] = {}
    if own is not None:
      comparisons |= dict.fromkeys(MEMORIES, own)
      one = self._compare(module.set_aside, rng)
      comparisons |= dict.fromkeys(ONE_BATCH, one)
      if self._ablation:
        four = joined([module.set_aside, *self._more_batches()])
        comparisons |= dict.fromkeys(FOUR_BATCHES, self._compare(four, rng))
        trained = self._compare(module.trained_on, rng)
        comparisons |= dict.fromkeys(TRAINED_ON, trained)
    for name, comparison in comparisons.items():
      self._choosers[name].choose(comparison, self.state.global_step)
    return {name: c.selected for name, c in self._choosers.items()}

  def _evaluate(self, rng: Any) -> None:
    state = self.state
    averager = state.optimizer_state['averager']
    own = averager.choice.selected
    averager.swap_out()
    chosen = {'auto': own, **self._other_choices(rng)}
    for name, which in chosen.items():
      self.choices.setdefault(name, []).append([state.global_step, which])
    if state.global_step >= self._first_step:
      shown = {name: i for i, name in enumerate(averager.choice.names)} | chosen
      self._follow(averager, shown, rng)
    averager.select(own)

  def _follow(self, averager: Any, shown: dict[str, int], rng: Any) -> None:
    """Extend the curves that have not come to the target yet."""
    state = self.state
    values: dict[int, float] = {}
    for name, which in shown.items():
      if name in self._arrived:
        continue
      averager.select(which)
      if which not in values:
        values[which] = study.validated(self, averager, rng)
      value = values[which]
      self.curves.setdefault(name, []).append([state.global_step, value])
      if self._is_enough(value):
        self._arrived.add(name)
    if len(self._arrived) == len(shown) and not self._to_the_end:
      state.train_state['training_complete'] = True

  def _is_enough(self, value: float) -> bool:
    """Whether a curve ends here."""
    workload = self.trial.workload
    return curves.reaches(
      value, workload.validation_target_value, workload.higher_is_better
    )


def trial_of(workload: Any, job: Mapping[str, Any], directory: str) -> Trial:
  """The submission at the job's learning rate and schedule."""
  settings = Settings(
    workload=job['workload'],
    submission_path=SUBMISSION,
    experiment_dir=directory,
    experiment_name=job['name'],
    rng_seed=job['seed'],
    run_to_budget=True,
    save_checkpoints=False,
  )
  (point,) = search_space.load(
    str(ROOT / workload.tuned_search_space), 1, job['seed']
  )
  point = dict(point) | {'schedule': job['schedule']}
  point['learning_rate'] *= job['learning_rate_factor']
  submission = submissions.Submission(SUBMISSION, _Overheard(SUBMISSION))
  return study.trial_of(workload, submission, settings, point, job['seed'])


def run(job: Mapping[str, Any], directory: str) -> dict[str, Any]:
  """Train once; curves and choices by candidate.

  Args:
    job: of `jobs`.
    directory: for the run's logs.
  """
  workload = build_workload(job['workload'])
  auto_run = AutoRun(
    trial_of(workload, job, directory),
    EVALUATED_FROM * workload.step_hint,
    job['ablation'],
    job['to_the_end'],
  )
  auto_run.run()
  return outcome(job, auto_run)


def outcome(job: Mapping[str, Any], auto_run: AutoRun) -> dict[str, Any]:
  """What is kept of a finished run."""
  workload = auto_run.trial.workload
  return {
    key: job[key]
    for key in ('workload', 'seed', 'learning_rate_factor', 'schedule')
  } | {
    'budget_steps': workload.step_hint,
    'target': workload.validation_target_value,
    'higher_is_better': workload.higher_is_better,
    'curves': auto_run.curves,
    'choices': auto_run.choices,
  }


def jobs(
  workloads: Sequence[str],
  seeds: Sequence[int],
  schedules: Sequence[str] = SCHEDULES,
  factors: Sequence[float] = LEARNING_RATE_FACTORS,
) -> list[cached_runs.Job]:
  """All runs, schedule by schedule and then seed by seed."""
  result = []
  for schedule in schedules:
    for seed in seeds:
      for factor in factors:
        for name in workloads:
          result.append(
            {
              'name': f'{name}_{seed}_{factor:g}_{schedule}',
              **study.job_of(name, seed),
              'learning_rate_factor': factor,
              'schedule': schedule,
              'ablation': (factor, schedule) == (1.0, 'cosine'),
              'to_the_end': seed == seeds[0],
              'rules': MEMORIES | ONE_BATCH | FOUR_BATCHES | TRAINED_ON,
              'version': VERSION,
              'candidates': auto.DEFAULT_CANDIDATES,
              'memory': auto.DEFAULT_PROBE_MEMORY,
            }
          )
  return result


def _define_flags() -> None:
  flags.DEFINE_list('workloads', sorted(WORKLOADS), 'Which workloads.')
  flags.DEFINE_list('seeds', [str(seed) for seed in SEEDS], 'Of the runs.')
  flags.DEFINE_list('schedules', list(SCHEDULES), 'Of the learning rate.')
  flags.DEFINE_list(
    'learning_rate_factors',
    [f'{factor:g}' for factor in LEARNING_RATE_FACTORS],
    'Multiples of the tuned learning rate.',
  )
  flags.DEFINE_integer('jobs', 2, 'Processes, one thread each.', 1)
  flags.DEFINE_string('output_dir', 'results/auto', 'Where results go.')
  flags.DEFINE_boolean(
    'report_only', False, 'Run nothing; report what is done.'
  )


def main(argv: Sequence[str]) -> None:
  """Run what is missing; write the rows and figures, print the tables."""
  del argv
  study.check_names('workloads', _FLAGS.workloads, sorted(WORKLOADS))
  output_dir = _FLAGS.output_dir
  runs = os.path.join(output_dir, 'runs')
  study.check_names('schedules', _FLAGS.schedules, SCHEDULES)
  allowed = {f'{factor:g}': factor for factor in LEARNING_RATE_FACTORS}
  factors = _FLAGS.learning_rate_factors
  study.check_names('learning_rate_factors', factors, allowed)
  wanted = jobs(
    _FLAGS.workloads,
    study.seeds_of(_FLAGS.seeds),
    _FLAGS.schedules,
    [allowed[factor] for factor in factors],
  )
  if _FLAGS.report_only:
    results = cached_runs.finished(wanted, runs)
  else:
    results = list(cached_runs.run_all(run, wanted, runs, _FLAGS.jobs))
  if not results:
    sys.exit(f'Error: No finished run of these is in {runs}.')
  auto_report.write(results, output_dir)
  rows = logs.read_json(os.path.join(output_dir, 'auto.json'))
  print(auto_tables.table(rows))


if __name__ == '__main__':
  _define_flags()
  app.run(main)
