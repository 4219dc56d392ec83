"""Show a model other weights for an evaluation."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lab.run.trial import TrialRun


def weights_of(run: TrialRun) -> list[Tensor]:
  """Return copies of the weights that the model holds."""
  return [p.detach().clone() for p in run.state.model_params.parameters()]


@contextlib.contextmanager
def holding(run: TrialRun, weights: Sequence[Tensor]) -> Iterator[None]:
  """Put weights into the model, and its own back at the end."""
  parameters = [p.data for p in run.state.model_params.parameters()]
  # What the model holds may be the memory of an average.
  kept = weights_of(run)
  torch._foreach_copy_(parameters, list(weights))
  try:
    yield
  finally:
    torch._foreach_copy_(parameters, kept)
