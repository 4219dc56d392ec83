"""Average checkpoints and write the averaged weights to files."""

import argparse
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch

from lab.core import command_line
from lab.core.errors import InputError
from lab.core.progress import Progress
from lab.offline import averaging, plans, posthoc, readers, series
from weightavg.schemes import Polynomial, Recursive

DTYPES = {
  'float64': torch.float64,
  'float32': torch.float32,
  'float16': torch.float16,
  'bfloat16': torch.bfloat16,
}


def numbers(kind: Callable[[str], Any]) -> Callable[[str], list]:
  """Return a parser of comma-separated lists."""

  def parse(text: str) -> list:
    return [kind(part) for part in text.split(',')]

  parse.__name__ = f'list of {kind.__name__}'
  return parse


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments that find and read checkpoints."""
  parser.add_argument(
    '--checkpoints',
    nargs='+',
    required=True,
    metavar='PATTERN',
    help='files or directories; patterns may be quoted',
  )
  parser.add_argument(
    '--key', help='dotted path of the state dict inside PyTorch files'
  )
  parser.add_argument(
    '--weights',
    choices=['raw', 'evaluated'],
    default='raw',
    help="which weights of this package's own checkpoints, where they differ",
  )
  parser.add_argument(
    '--step_pattern', help='regular expression with one group, the step'
  )


def find_series(args: argparse.Namespace) -> series.Series:
  """Return the checkpoints that the command line names."""
  return series.find(
    args.checkpoints, args.key, args.weights == 'evaluated', args.step_pattern
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `average`; lists are separated by commas."""
  add_input_arguments(parser)
  parser.add_argument(
    '--scheme',
    choices=[*plans.averages(), 'posthoc'],
    required=True,
  )
  ints, floats = numbers(int), numbers(float)
  for name, field in plans.all_lengths().items():
    parser.add_argument(
      f'--{name}',
      type=numbers(field.metadata['kind']),
      default=[],
      help=field.metadata['help'],
    )
  parser.add_argument(
    '--sigma_rel',
    type=floats,
    default=[],
    help='width of a power-function EMA from snapshots, relative to the run',
  )
  parser.add_argument(
    '--every',
    type=ints,
    default=[1],
    help='use every N-th checkpoint, counted back from --at',
  )
  parser.add_argument(
    '--at', type=ints, default=[], help='step of the last checkpoint (the last)'
  )
  parser.add_argument(
    '--budget', type=int, help='T in steps, for --horizon (the last step)'
  )
  parser.add_argument(
    '--output',
    required=True,
    help='.safetensors or .pt; with several outputs a template such as '
    'avg_{window}_{at}.safetensors',
  )
  parser.add_argument(
    '--dtype', choices=DTYPES, help='of the averages (as in the last input)'
  )
  parser.add_argument(
    '--batch_norm',
    choices=['averaged', 'current'],
    help="running statistics: averaged like the weights, or the last input's "
    '(averaged; posthoc: current, which for snapshots are averages, too)',
  )
  parser.add_argument(
    '--sums', choices=['float32', 'float64'], default='float32'
  )
  parser.add_argument(
    '--no_hashes', action='store_true', help='leave the inputs unhashed'
  )


# The fields of each output, and the function that plans it.
_Outputs = list[tuple[dict[str, Any], Callable[[], plans.AveragePlan]]]


def _planned(args: argparse.Namespace, found: series.Series) -> _Outputs:
  outputs: _Outputs = []
  spacing = found.spacing if args.horizon else 0
  for at, every in itertools.product(args.at or found.steps[-1:], args.every):
    if every < 1:
      raise InputError(f'Invalid every={every}. Must be in [1, inf).')
    for field, scheme in _schemes(
      args, args.scheme, spacing * every, found.steps[-1]
    ):
      fields = {'scheme': args.scheme, **field, 'every': every, 'at': at}

      def make(
        scheme: plans.Scheme = scheme, at: int = at, every: int = every
      ) -> plans.AveragePlan:
        return plans.plan(found, scheme, found.position(at), every)

      outputs.append((fields, make))
  return outputs


def _schemes(
  args: argparse.Namespace, name: str, steps_between: float, last_step: int
) -> Iterator[tuple[dict[str, Any], Any]]:
  return plans.schemes(
    name,
    {length: getattr(args, length) for length in plans.all_lengths()},
    steps_between=steps_between,
    budget=plans.budget_of(args.budget, last_step),
  )


def _planned_posthoc(
  args: argparse.Namespace, paths: Sequence[str]
) -> tuple[series.Series, _Outputs]:
  found, snapshots = posthoc.find(paths)
  if args.every != [1]:
    _refuse('every', 'with scheme=posthoc')
  wanted: list[tuple[dict[str, Any], Recursive]] = [
    ({'sigma_rel': s}, Polynomial(posthoc.power_of_sigma(s)))
    for s in args.sigma_rel
  ]
  if args.decay or not wanted:
    # Decays are per sample of the accumulators, not per snapshot.
    wanted += _schemes(args, 'ema', 0, 0)
  outputs: _Outputs = []
  for at in args.at or found.steps[-1:]:
    for field, scheme in wanted:

      def make(scheme: Recursive = scheme, at: int = at) -> plans.AveragePlan:
        made = posthoc.plan(snapshots, scheme, at)
        error = made.recipe['relative_error_of_weights']
        print(f'weights of {scheme} at step {at}: relative error {error:.2g}')
        return made

      outputs.append(({'scheme': 'posthoc', **field, 'at': at}, make))
  return found, outputs


def _check_one_length(args: argparse.Namespace) -> None:
  # Outputs by different lengths have no placeholder in common.
  allowed = plans.lengths_of(plans.averages()[args.scheme])
  given = [name for name in allowed if getattr(args, name)]
  if len(given) > 1:
    raise InputError(f'Contradicting {" and ".join(given)}. Give one of them.')


def _refuse(name: str, why: str) -> NoReturn:
  raise InputError(f'Invalid {name}. It has no effect {why}.')


def run(args: argparse.Namespace) -> int:
  """Write the averages; return the number of outputs that failed."""
  if args.scheme == 'posthoc':
    others = {*plans.all_lengths()} - {'decay'}
    if any(getattr(args, name) for name in others):
      raise InputError('scheme=posthoc takes sigma_rel or decay.')
    for name in ('key', 'step_pattern', 'budget'):
      if getattr(args, name) is not None:
        _refuse(name, 'with scheme=posthoc')
    if args.weights != 'raw':
      _refuse('weights', 'with scheme=posthoc')
    paths = series.matching(args.checkpoints)
    found, outputs = _planned_posthoc(args, paths)
  else:
    if args.sigma_rel:
      _refuse('sigma_rel', f'with scheme={args.scheme}')
    if args.budget is not None and not args.horizon:
      _refuse('budget', 'without horizon')
    _check_one_length(args)
    found = find_series(args)
    series.check_readable(found)
    outputs = _planned(args, found)
  paths = plans.output_paths(args.output, [fields for fields, _ in outputs])
  taken = set().union(*map(readers.files_of, found.paths))
  ready: list[tuple[plans.AveragePlan, str]] = []
  failures: list[InputError] = []
  for (_, make), path in zip(outputs, paths, strict=True):
    try:
      place = os.path.realpath(path)
      # Beside the files of a directory it could be read as one of them.
      if place in taken or os.path.dirname(place) in taken:
        raise InputError(
          f'Invalid output={path!r}. It is one of the inputs, or inside of one.'
        )
      ready.append((make(), path))
    except InputError as error:
      failures.append(error)
  bar = Progress(0, 0, visible=True)
  written = averaging.write_averages(
    found,
    ready,
    DTYPES.get(args.dtype),
    DTYPES[args.sums],
    # Negative post-hoc weights could make variances negative.
    statistics=(
      args.scheme != 'posthoc'
      if args.batch_norm is None
      else args.batch_norm == 'averaged'
    ),
    hashes=not args.no_hashes,
    progress=bar.step,
  )
  bar.close()
  for (plan, path), (_, failure) in zip(ready, written, strict=True):
    if failure is None:
      print(f'{path}: {len(plan.inputs)} checkpoints, {_span(found, plan)}')
    else:
      failures.append(failure)
  return report(failures)


def _span(found: series.Series, plan: plans.AveragePlan) -> str:
  first, last = found.steps[plan.inputs[0]], found.steps[plan.inputs[-1]]
  return f'steps {first} to {last}'


def report(failures: Sequence[InputError]) -> int:
  """Print each error once, as a line; return their number."""
  for line in dict.fromkeys(str(error) for error in failures):
    command_line.print_error(line)
  return len(failures)
