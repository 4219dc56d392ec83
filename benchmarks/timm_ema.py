"""The averages of an installed timm, without its models.

`import timm` imports all models and torchvision, whose wheels need a CUDA build
of torch. The file of its averages needs neither.
"""

import importlib.util
import pathlib
import types


def load() -> types.ModuleType | None:
  """timm's module with ModelEmaV2 and ModelEmaV3; None if it is missing."""
  package = importlib.util.find_spec('timm')
  if package is None or package.origin is None:
    return None
  path = pathlib.Path(package.origin).parent / 'utils' / 'model_ema.py'
  spec = importlib.util.spec_from_file_location('timm_model_ema', path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
