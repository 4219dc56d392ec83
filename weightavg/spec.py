"""The benchmark's types: AlgoPerf's own where installed, equal ones where not.

Everything that talks to a workload imports this module as `spec`, so that an
installed `algoperf` and a bare machine run the same code. Importing it with
algoperf installed imports jax too (its spec does); nothing else in `weightavg`
is imported by it, and only the code that drives a workload imports it.
"""

import importlib.util

if importlib.util.find_spec('algoperf') is not None:
  from algoperf.spec import (
    ForwardPassMode,
    LossType,
    ParameterType,
    TrainingCompleteError,
    Workload,
  )
else:
  from weightavg.spec_fallback import (
    ForwardPassMode,
    LossType,
    ParameterType,
    TrainingCompleteError,
    Workload,
  )

__all__ = [
  'ForwardPassMode',
  'LossType',
  'ParameterType',
  'TrainingCompleteError',
  'Workload',
]
