"""Every claim of the papers, measured: which of them hold on the workloads?

A claim is a function that `register` decorates in a module of this package that
is named here; it asks for runs and returns the effects that it finds in them.
The runs are shared. `statistics` says when a claim holds.

Writes claims.json (a row for each claim), claims.md, claims.png and
claims_noise.png. With --quick, short runs of two workloads go through all of it
in a quarter of an hour; their numbers say nothing.
"""

from lab.studies.claims import (
  annealing,
  budgets,
  final_metric,
  kaddour,
  noise,
  primal,
  speed,
)
from lab.studies.claims.claim import CLAIMS, Claim, Part, register
from lab.studies.claims.command import main

__all__ = [
  'CLAIMS',
  'Claim',
  'Part',
  'annealing',
  'budgets',
  'final_metric',
  'kaddour',
  'main',
  'noise',
  'primal',
  'register',
  'speed',
]
