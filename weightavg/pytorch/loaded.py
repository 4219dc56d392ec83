"""Classes of PyTorch's whose import takes as long as that of torch."""

import sys
from typing import Any


def loaded_class(module: str, name: str) -> Any:
  """Return a class, or None as long as nothing can be one of it.

  An object of a class exists where the class's module is loaded. It is not
  loaded here: that takes long, and some builds and versions lack it.

  >>> loaded_class('collections', 'OrderedDict').__name__
  'OrderedDict'
  >>> loaded_class('not_loaded', 'Name') is None
  True
  """
  return getattr(sys.modules.get(module), name, None)
