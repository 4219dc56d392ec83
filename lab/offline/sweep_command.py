"""Evaluate averages of a finished run's checkpoints.

The command writes sweep.csv in the columns of the run's own
eval_measurements.csv, preceded by scheme, its fields and every, and for each
average a trial as the runner writes it, which reports read like one of another
submission.
"""

import argparse
import glob
import os
import pathlib
from typing import Any

from lab.core import checkpoint_files, command_line, light_files, logs
from lab.core.errors import InputError
from lab.core.progress import Progress
from lab.offline import plans, series, sweep, workload_loader
from lab.offline.average_command import numbers
from weightavg.optimizers import published_batch_size
from weightavg.workloads import batch_size_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `sweep`; lists are separated by commas."""
  parser.add_argument('--run', required=True, help="a trial's directory")
  parser.add_argument('--workload', required=True, help='local, or AlgoPerf')
  for name, field in plans.all_lengths().items():
    parser.add_argument(
      f'--{name}s',
      type=numbers(field.metadata['kind']),
      default=[],
      help=f'{field.metadata["help"]}; for each scheme that has it',
    )
  parser.add_argument(
    '--schemes',
    default='all',
    help=f'all, or among {", ".join(plans.averages())} (%(default)s)',
  )
  parser.add_argument(
    '--budget', type=int, help='T in steps, for --horizons (the last step)'
  )
  parser.add_argument(
    '--every',
    type=numbers(int),
    default=[1],
    help='checkpoints between two samples',
  )
  parser.add_argument(
    '--batch_norm',
    choices=['averaged', 'current'],
    default='averaged',
    help="running statistics: averaged like the weights, or the last input's",
  )
  parser.add_argument(
    '--recompute_batch_norm',
    type=int,
    default=0,
    metavar='BATCHES',
    help='recompute running statistics on this number of training batches',
  )
  parser.add_argument('--output_dir', help='where results go (RUN/offline)')
  parser.add_argument(
    '--checkpoints',
    nargs='+',
    help='patterns; by default the light checkpoints of the run, or its '
    'checkpoint_* where it has none',
  )
  parser.add_argument('--data_dir', default='', help="of AlgoPerf's workloads")
  parser.add_argument(
    '--imagenet_v2_data_dir', help="test data of AlgoPerf's ImageNet workloads"
  )
  parser.add_argument(
    '--librispeech_tokenizer_vocab_path',
    default='',
    help="of AlgoPerf's librispeech workloads",
  )


def _variants(
  args: argparse.Namespace, found: series.Series
) -> list[sweep.Variant]:
  """Each scheme with each value of each of its fields, at each cadence."""
  given = {n: v for n in plans.all_lengths() if (v := getattr(args, f'{n}s'))}
  if not given:
    flags = ' or '.join(f'--{name}s' for name in plans.all_lengths())
    raise InputError(f'Missing {flags}.')
  if args.budget is not None and 'horizon' not in given:
    raise InputError('Invalid budget. It has no effect without horizons.')
  names = command_line.names_of(args.schemes, [*plans.averages()], 'schemes')
  spacing = found.spacing if 'horizon' in given else 0
  variants = []
  for every in args.every:
    if every < 1:
      raise InputError(f'Invalid every={every}. Must be in [1, inf).')
    for name in names:
      fields = plans.lengths_of(plans.averages()[name])
      values = {key: v for key, v in given.items() if key in fields}
      if not values:
        continue
      for field, scheme in plans.schemes(
        name,
        values,
        steps_between=spacing * every,
        budget=plans.budget_of(args.budget, found.steps[-1]),
      ):
        (item,) = field.items()
        settings = _settings(args, item[0])
        variants.append(sweep.Variant(scheme, item, every, settings))
  if not variants:
    raise InputError(
      f'Invalid schemes={args.schemes}. None has a {" or a ".join(given)}.'
    )
  return list(dict.fromkeys(variants))


def _settings(args: argparse.Namespace, field: str) -> tuple[Any, ...]:
  """Return names and values by which curves of other commands differ."""
  given = {
    'budget': args.budget if field == 'horizon' else None,
    'batch_norm': None if args.batch_norm == 'averaged' else args.batch_norm,
    'recompute_batch_norm': args.recompute_batch_norm or None,
  }
  return tuple((name, value) for name, value in given.items() if value)


def _pattern(run: str) -> str:
  if not light_files.steps(run) and checkpoint_files.steps(run):
    return os.path.join(glob.escape(run), 'checkpoint_*')
  return light_files.path_of(glob.escape(run), '*')


def run(args: argparse.Namespace) -> int:
  """Evaluate the averages that are not cached, and write the tables."""
  output = args.output_dir or os.path.join(args.run, 'offline')
  if args.recompute_batch_norm < 0:
    raise InputError(
      f'Invalid recompute_batch_norm={args.recompute_batch_norm}. Must be in '
      '[0, inf).'
    )
  workload = workload_loader.find_workload(
    args.workload, args.librispeech_tokenizer_vocab_path
  )
  found = series.find(args.checkpoints or [_pattern(args.run)])
  variants = _variants(args, found)
  command_line.check_writable(pathlib.Path(output))
  sweeping = sweep.Sweep(
    workload,
    found,
    args.run,
    output,
    os.path.expanduser(args.data_dir),
    args.recompute_batch_norm,
    batch_size_of(workload, published_batch_size)
    if args.recompute_batch_norm
    else 0,
    args.imagenet_v2_data_dir and os.path.expanduser(args.imagenet_v2_data_dir),
    args.batch_norm == 'averaged',
  )
  points = sweeping.points()
  if not points:
    raise InputError(f'No checkpoint before any evaluation of {args.run}.')
  bar = Progress(len(variants) * len(points), 0, visible=True)
  rows: dict[sweep.Variant, list[dict[str, Any]]] = {v: [] for v in variants}
  for variant, row in sweeping.run(variants, bar.step):
    rows[variant].append(row)
  bar.close()
  with sweep.writing(output):
    _write(output, args.workload, rows)
  total = sum(map(len, rows.values()))
  print(
    f'{os.path.join(output, "sweep.csv")}: {len(variants)} averages, {total} '
    f'rows, {sweeping.evaluated} evaluated now'
  )
  return 0


def _write(
  output: str,
  workload: str,
  rows: dict[sweep.Variant, list[dict[str, Any]]],
) -> None:
  everything = []
  for variant, own in rows.items():
    trial = os.path.join(output, variant.name, f'{workload}_pytorch', 'trial_1')
    os.makedirs(trial, exist_ok=True)
    logs.write_json(os.path.join(trial, logs.HPARAMS), variant.columns)
    _write_table(os.path.join(trial, logs.EVAL_MEASUREMENTS), own)
    everything += [variant.columns | row for row in own]
  _write_table(os.path.join(output, 'sweep.csv'), everything)


def _write_table(path: str, rows: list[dict[str, Any]]) -> None:
  table = logs.Table(path)
  table.columns = list(dict.fromkeys(key for row in rows for key in row))
  table.rows = rows
  table.rewrite()
