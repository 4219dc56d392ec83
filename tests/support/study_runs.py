"""Results of runs of studies, typed out, cells of tables, and weights."""

import torch


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
