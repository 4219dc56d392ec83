"""Which of the averages that are kept evaluation sees."""

from weightavg.schemes import Raw, Scheme

# In place of an average: the raw weights.
RAW = -1


class Choice:
  """The index of the average that is shown, among the parts of a scheme.

  A scheme that keeps one average shows it. One that keeps several shows the raw
  weights until one of them is selected.

  Args:
    scheme: with its length in samples.
  """

  def __init__(self, scheme: Scheme) -> None:
    self._parts = scheme.parts
    self.names = scheme.part_names
    self.selected = RAW if self.names else 0

  def select(self, which: int) -> None:
    """Choose what is shown from now on.

    Args:
      which: index into `names`; RAW (-1) for the raw weights.

    Raises:
      ValueError: for an index that no candidate has.
    """
    if not RAW <= which < len(self.names):
      raise ValueError(f'Invalid {which=}. Must be in [-1, {len(self.names)}).')
    self.selected = which

  @property
  def shows_raw(self) -> bool:
    """True where the raw weights are selected."""
    return self.selected == RAW or isinstance(self._parts[self.selected], Raw)
