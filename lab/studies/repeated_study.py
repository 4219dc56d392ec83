"""Whether a choice among averages survives data that repeat.

`python -m lab.studies.repeated_study`. The study of the choice draws every
batch anew, so that a probe is never trained on. Here a run passes ten times
over a tenth of its data, as most of the benchmark's do: a probe has been
trained on an epoch before, and will be again. Beside the submission chooses the
same rule with as many examples that never are. Averages never touch training,
so that both choose among the same ones.

All runs go to their end. The target of each is what its raw weights, NadamW,
were at their best: one from endless data would say nothing here. Written to
--output_dir are repeated.json, with rows as in auto.json, and the runs.
"""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags

from lab.core import curves, logs
from lab.studies import auto_report, auto_study, auto_tables, cached_runs, study
from lab.workloads import WORKLOADS, build_workload
from weightavg.pytorch import probes, selection
from weightavg.schemes import auto

EPOCHS = 10
SEEDS = auto_study.SEEDS
FRESH = 'never trained on'
# Of what is chosen: runs of another one are made anew.
VERSION = 2

_FLAGS = flags.FLAGS


class RepeatedRun(auto_study.AutoRun):
  """A trial whose data repeat, with a second choice by examples that do not.

  Args:
    trial: a trial of the submission.
  """

  def __init__(self, trial: Any) -> None:
    super().__init__(
      trial,
      auto_study.EVALUATED_FROM * trial.workload.step_hint,
      ablation=False,
      to_the_end=True,
    )
    self._fresh = auto_study.Chooser(
      selection.Selector(auto.DEFAULT_PROBE_MEMORY)
    )
    # The same data without end: no example comes twice.
    self._endless = build_workload(trial.settings.workload)._build_input_queue(
      (trial.rng_seed, auto_study.FURTHER_SALT), 'train', '', trial.batch_size
    )

  def _other_choices(self, rng: Any) -> dict[str, int]:
    state = self.state
    own = state.optimizer_state['probe'].batch
    if state.optimizer_state['selector'].latest is not None:
      batch = probes.first_examples(
        next(self._endless), probes.num_examples(own)
      )
      self._fresh.choose(self._compare(batch, rng), state.global_step)
    return {FRESH: self._fresh.selected}

  def _is_enough(self, value: float) -> bool:
    """The target is known at the end."""
    return False


def run(job: Mapping[str, Any], directory: str) -> dict[str, Any]:
  """Train once; curves and choices by candidate.

  Args:
    job: of `jobs`.
    directory: for the run's logs.
  """
  workload = build_workload(job['workload'])
  workload.epochs = job['epochs']
  repeated_run = RepeatedRun(auto_study.trial_of(workload, job, directory))
  repeated_run.run()
  result = auto_study.outcome(job, repeated_run)
  curve = [
    curves.Point(int(step), 0.0, value)
    for step, value in result['curves']['raw']
  ]
  return result | {
    'epochs': job['epochs'],
    'target': curves.best(curve, workload.higher_is_better),
  }


def jobs(
  workloads: Sequence[str], seeds: Sequence[int]
) -> list[cached_runs.Job]:
  """Seed by seed, at the tuned learning rate with a cosine to zero."""
  factor, schedule = auto_report.TUNED
  return [
    {
      'name': f'{name}_{seed}_{EPOCHS}_epochs',
      **study.job_of(name, seed),
      'learning_rate_factor': factor,
      'schedule': schedule,
      'epochs': EPOCHS,
      'version': VERSION,
      'candidates': auto.DEFAULT_CANDIDATES,
      'memory': auto.DEFAULT_PROBE_MEMORY,
    }
    for seed in seeds
    for name in workloads
  ]


def rows_of(results: Iterable[Mapping[str, Any]]) -> list[auto_report.Row]:
  """Rows as in auto.json, and how often both probes lead to the same choice."""
  rows = []
  for result in results:
    both = zip(
      result['choices'][auto_report.AUTO], result['choices'][FRESH], strict=True
    )
    same = [one == other for one, other in both]
    rows += [
      row | {'epochs': result['epochs'], 'same_choice': sum(same) / len(same)}
      for row in auto_report.rows_of([result])
    ]
  return rows


def table(rows: Sequence[auto_report.Row]) -> str:
  """Markdown: fraction of T at which each is as good as NadamW at its best."""
  found = auto_report.Study.of(rows)
  names = [*found.fixed, auto_report.AUTO, FRESH]
  lines = []
  for setting in sorted(found.times):
    own = [row for row in rows if row['workload'] == setting[0]]
    cells = [setting[0], str(len(found.times[setting][auto_report.AUTO]))]
    for name in names:
      shares = [
        row['share_of_raw']
        for row in own
        if row['candidate'] == name and row['share_of_raw'] is not None
      ]
      raw = f' (raw {statistics.fmean(shares):.0%})' if shares else ''
      cells.append(auto_tables.time_cell(found, setting, name) + raw)
    same = statistics.fmean(row['same_choice'] for row in own)
    lines.append([*cells, f'{same:.0%}'])
  header = ['workload', 'seeds', *map(auto_report.label_of, names)]
  return auto_tables.markdown([*header, 'same choice'], lines)


def _define_flags() -> None:
  flags.DEFINE_list('workloads', sorted(WORKLOADS), 'Which workloads.')
  flags.DEFINE_list('seeds', [str(seed) for seed in SEEDS], 'Of the runs.')
  flags.DEFINE_integer('jobs', 2, 'Processes, one thread each.', 1)
  flags.DEFINE_string('output_dir', 'results/auto', 'Where results go.')


def main(argv: Sequence[str]) -> None:
  """Run what is missing; write the rows, print the table."""
  del argv
  study.check_names('workloads', _FLAGS.workloads, sorted(WORKLOADS))
  output_dir = _FLAGS.output_dir
  wanted = jobs(_FLAGS.workloads, study.seeds_of(_FLAGS.seeds))
  runs = os.path.join(output_dir, 'runs')
  results = list(cached_runs.run_all(run, wanted, runs, _FLAGS.jobs))
  rows = rows_of(
    sorted(results, key=lambda result: (result['workload'], result['seed']))
  )
  logs.write_rows(os.path.join(output_dir, 'repeated.json'), rows)
  print(table(rows))


if __name__ == '__main__':
  _define_flags()
  app.run(main)
