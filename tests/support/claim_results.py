"""Claims measured on typed results: curves whose effect is known."""

from study_runs import curve, result

from lab.studies.claims import claim, rows
from lab.studies.claims.shelf import FULL, Shelf


def asked(names, scale=FULL):
  """A shelf that some claims were asked on."""
  shelf = Shelf(scale)
  rows.rows_of(claim.named(names), shelf)
  return shelf


def measured(name, result_of, scale=FULL):
  """A claim's row where every run has the result that a function types."""
  shelf = asked([name], scale)
  shelf.put([result_of(run) for run in shelf.runs])
  before = len(shelf.runs)
  (row,) = rows.rows_of(claim.named([name]), shelf)
  # What a claim finds does not change what it asks for.
  assert len(shelf.runs) == before
  return row


def typed(run, arrivals, finals=None, **columns):
  """A run's result: where each average arrives; others never do.

  Args:
    run: of the claim.
    arrivals: step in 100 at which an average is at the target, by name.
    finals: value at the end by name, instead of that of a curve.
    **columns: further ones.
  """
  curves = {}
  for name in run.follows['candidates']:
    own = curve(arrivals.get(name, arrivals.get('*')), first=2)
    if finals and name in finals:
      own[-1][2] = finals[name]
    curves[name] = own
  return result(curves, run.workload, run.seed, **columns)
