"""Small synthetic folders of logs in AlgoPerf's layout."""

import csv
import json
import pathlib

COLUMNS = (
  'accumulated_eval_time',
  'accumulated_logging_time',
  'accumulated_submission_time',
  'global_step',
  'score',
)


def trial_folder(
  root, submission, workload, study=0, trial=1, framework='pytorch'
):
  """Return the folder of a trial's logs."""
  return (
    pathlib.Path(root)
    / submission
    / f'study_{study}'
    / f'{workload}_{framework}'
    / f'trial_{trial}'
  )


def write_trial(
  root,
  submission,
  workload,
  evaluations,
  *,
  metric='loss',
  hyperparameters=None,
  extra=None,
  **place,
):
  """Write a trial's files; `evaluations` are (step, seconds, value) triples.

  `value` None leaves the cell empty. `extra` maps further file names to JSON.
  """
  folder = trial_folder(root, submission, workload, **place)
  folder.mkdir(parents=True)
  path = folder / 'eval_measurements.csv'
  with open(path, 'w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file)
    writer.writerow([*COLUMNS, f'validation/{metric}', 'validation/count'])
    for step, seconds, value in evaluations:
      shown = '' if value is None else value
      writer.writerow([seconds / 4, 0.0, seconds, step, seconds, shown, 7])
  files = dict(extra or {})
  if hyperparameters is not None:
    files['hparams.json'] = hyperparameters
  for name, content in files.items():
    (folder / name).write_text(json.dumps(content))
  return path


def write_targets(path, workloads, base=None, version='9.9'):
  """Write targets; `workloads`: name -> (metric, target, step hint)."""
  content = {
    'benchmark_version': version,
    'base_workloads': list(base or workloads),
    'workloads': {
      name: {
        'target_metric_name': metric,
        'validation_target_value': target,
        'step_hint': hint,
      }
      for name, (metric, target, hint) in workloads.items()
    },
  }
  path.write_text(json.dumps(content))
  return path


def small_group(root):
  """Two submissions, two workloads and three studies, all of them reached.

  Times to the targets of AlgoPerf 1.0 (criteo1tb: loss 0.123735, wmt: bleu
  30.8491): `fast` 100, 110, 120 s and 200, 200, 200 s; `slow` twice and three
  times as long.
  """
  for study, seconds in enumerate((100.0, 110.0, 120.0)):
    for name, factor in (('fast', 1.0), ('slow', 2.0)):
      write_trial(
        root,
        name,
        'criteo1tb',
        [(500, 10.0, 0.2), (1000, factor * seconds, 0.1)],
        study=study,
      )
  for study in range(3):
    for name, factor in (('fast', 1.0), ('slow', 3.0)):
      write_trial(
        root,
        name,
        'wmt',
        [(600, 10.0, 3.0), (12000, factor * 200.0, 31.0)],
        metric='bleu',
        study=study,
      )
