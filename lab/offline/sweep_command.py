"""`sweep`: every average of a finished run's checkpoints, evaluated.

Writes sweep.csv, in the columns of the run's own eval_measurements.csv with
scheme, window, decay and every before them, and for each average a trial as
the runner writes it, so that reports take it for one more submission.
"""

import argparse
import glob
import os
from typing import Any

from lab.core import checkpoint_files, light_files, logs
from lab.core.errors import InputError
from lab.core.progress import Progress
from lab.offline import plans, series, sweep, workload_loader
from lab.offline.average_command import numbers
from weightavg.optimizers import published_batch_size
from weightavg.workloads import batch_size_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The command line of `sweep`; lists are separated by commas."""
  ints, floats = numbers(int), numbers(float)
  parser.add_argument('--run', required=True, help="a trial's directory")
  parser.add_argument('--workload', required=True, help='local, or AlgoPerf')
  parser.add_argument('--windows', type=ints, default=[], help='LAWA')
  parser.add_argument('--decays', type=floats, default=[], help='EMA')
  parser.add_argument(
    '--every', type=ints, default=[1], help='checkpoints between two samples'
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
    help='recompute running statistics by so many training batches',
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


def _variants(args: argparse.Namespace) -> list[sweep.Variant]:
  if not args.windows and not args.decays:
    raise InputError('Missing windows or decays.')
  found = []
  for every in args.every:
    if every < 1:
      raise InputError(f'Invalid every={every}. Must be in [1, inf).')
    schemes: list[plans.Scheme] = []
    if args.windows:
      schemes += [s for _, s in plans.schemes('lawa', {'window': args.windows})]
    if args.decays:
      schemes += [s for _, s in plans.schemes('ema', {'decay': args.decays})]
    found += [sweep.Variant(scheme, every) for scheme in schemes]
  return list(dict.fromkeys(found))


def _pattern(run: str) -> str:
  if not light_files.steps(run) and checkpoint_files.steps(run):
    return os.path.join(glob.escape(run), 'checkpoint_*')
  return light_files.path_of(glob.escape(run), '*')


def run(args: argparse.Namespace) -> int:
  """Evaluate what is not known yet, and write the tables."""
  output = args.output_dir or os.path.join(args.run, 'offline')
  variants = _variants(args)
  workload = workload_loader.find_workload(
    args.workload, args.librispeech_tokenizer_vocab_path
  )
  found = series.find(args.checkpoints or [_pattern(args.run)])
  with sweep.writing(output):
    os.makedirs(output, exist_ok=True)
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
