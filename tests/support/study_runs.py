"""Points and results of runs of studies, typed out, and cells of tables."""

import math

import torch

from lab.studies.parts import tuned

# Fields of an averager that averages nothing.
RAW = {'raw': {'averaging_scheme': 'none'}}
POINT = {
  'learning_rate': 0.01,
  'one_minus_beta1': 0.1,
  'one_minus_beta2': 0.01,
  'weight_decay': 0.1,
  'warmup_factor': 0.1,
  'dropout_rate': 0.1,
  'label_smoothing': 0.1,
}


def curve(arrives, first=50, last=100, every=2):
  """A curve that is at the target 0.5 from step `arrives` on; None: never."""
  steps = range(first, last + 1, every)
  good = lambda s: arrives is not None and s >= arrives  # noqa: E731
  return [[s, s / 10, 0.1 if good(s) else 0.9] for s in steps]


def result(curves, workload='w', seed=0, **columns):
  """A run of 100 steps, lower is better, whose target is 0.5."""
  return {
    'workload': workload,
    'seed': seed,
    'budget_steps': 100,
    'evaluated_every': 2,
    'target': 0.5,
    'higher_is_better': False,
    'curves': curves,
    **columns,
  }


def trial(stopped=None, higher=False, **best):
  """A trial whose candidates have these values, and others none."""
  curves = {
    name: [[12, 1.0, best.get(name.split()[0], math.nan)]]
    for name in tuned.CANDIDATES
  }
  return {'higher_is_better': higher, 'stopped': stopped, 'curves': curves}


def lines(table):
  """The cells of each line of a Markdown table, but the rule."""
  return [
    [cell.strip() for cell in line.strip('| ').split('|')]
    for line in table.splitlines()
    if not set(line) <= set('|-: ')
  ]


def cells(table, first):
  """The cells behind the first one, of the line that begins with it."""
  (line,) = [line for line in lines(table) if line[0] == first]
  return line[1:]


def flat_weights(run):
  """A copy of the weights that a run's model holds, as one vector."""
  parameters = run.state.model_params.parameters()
  return torch.cat([p.detach().flatten().clone() for p in parameters])
