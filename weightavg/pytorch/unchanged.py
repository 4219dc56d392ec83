"""Find parameters that were written to since they were left as they are.

torch counts the writes to a tensor, but for those through `.data`.
"""

from torch import Tensor

from weightavg.pytorch import dtensors
from weightavg.pytorch.weights import Weights


class Unchanged:
  """The versions of parameters as they were left.

  Args:
    weights: their parameters are looked at.
  """

  def __init__(self, weights: Weights) -> None:
    self._weights = weights
    self._left: list[tuple[Tensor, int, int]] | None = None

  def note(self) -> None:
    """The parameters are left as they are now."""
    self._left = [(p, *_version(p)) for p in self._weights.parameters]

  def forget(self) -> None:
    """Any change is allowed until the next `note`."""
    self._left = None

  def changed(self) -> str | None:
    """Name of a parameter that was written to or replaced since `note`."""
    named = zip(self._weights.names, self._weights.parameters, strict=False)
    for (name, p), (old, *version) in zip(
      named, self._left or [], strict=False
    ):
      if p is not old or list(_version(p)) != version:
        return name
    return None

  def __getstate__(self) -> dict[str, object]:
    # Versions and storages are of these parameters, a copy has others.
    return self.__dict__ | {'_left': None}


def _version(p: Tensor) -> tuple[int, int]:
  # A DTensor has no storage of its own.
  return p._version, 0 if dtensors.is_dtensor(p) else p.data_ptr()
