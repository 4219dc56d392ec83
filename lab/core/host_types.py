"""Recognise the benchmark's types in a submission that has a copy of them.

Where algoperf is not installed, a submission that `lab.export` has written
brings its own `spec_fallback`. Its types have the names and members of those of
this clone, and are other objects.
"""

import enum

from weightavg import spec


def is_training(mode: enum.Enum) -> bool:
  """Tell if a ForwardPassMode is TRAIN.

  >>> is_training(spec.ForwardPassMode.TRAIN)
  True
  """
  return mode.name == spec.ForwardPassMode.TRAIN.name


def is_training_complete(error: Exception) -> bool:
  """Tell if an exception is a TrainingCompleteError.

  >>> is_training_complete(spec.TrainingCompleteError())
  True
  """
  name = spec.TrainingCompleteError.__name__
  return any(kind.__name__ == name for kind in type(error).__mro__)
