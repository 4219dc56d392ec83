"""A run of a search, which may end before its budget."""

import dataclasses
import math
from typing import Any

from lab.studies.parts import search
from lab.studies.parts.training import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialTraining(Training):
  """A trial; one whose optimizer ends it has diverged, and is stopped there."""

  def until_divergence(
    self, findings: dict[str, Any], step: int
  ) -> dict[str, Any]:
    """Have it stopped at the step, and without a value at the next rung."""
    rungs = [*findings['rungs'], math.nan][: len(search.RUNGS)]
    more = {'rungs': rungs, 'stopped': step}
    return super().until_divergence(findings, step) | more
