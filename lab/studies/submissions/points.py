"""Points as submissions get them."""

from collections.abc import Mapping
from typing import Any


def as_dict(point: Any) -> dict[str, Any]:
  """Copy a point, a namedtuple or a mapping.

  >>> as_dict({'learning_rate': 0.1})
  {'learning_rate': 0.1}
  """
  return dict(point if isinstance(point, Mapping) else point._asdict())
