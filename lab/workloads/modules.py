"""Models as a workload describes and reaches them: shapes, roles, wrappers."""

import dataclasses

from torch import nn

from weightavg import spec


@dataclasses.dataclass(frozen=True)
class Shape:
  """Shape of a parameter, as AlgoPerf's ShapeTuple."""

  shape_tuple: tuple[int, ...]


def parameter_types(model: nn.Module) -> dict[str, spec.ParameterType]:
  """Roles by the layer that owns a parameter, not by its name."""
  kinds = spec.ParameterType
  types = {}
  for module_name, module in model.named_modules():
    for name, _ in module.named_parameters(recurse=False):
      bias = name.endswith('bias')
      if isinstance(module, nn.modules.batchnorm._BatchNorm):
        kind = kinds.BATCH_NORM_BIAS if bias else kinds.BATCH_NORM_SCALE
      elif isinstance(module, nn.LayerNorm | nn.InstanceNorm2d):
        kind = kinds.LAYER_NORM_BIAS if bias else kinds.LAYER_NORM_SCALE
      elif isinstance(module, nn.Embedding):
        kind = kinds.EMBEDDING
      elif bias:
        kind = kinds.BIAS
      elif isinstance(module, nn.modules.conv._ConvNd):
        kind = kinds.CONV_WEIGHT
      else:
        kind = kinds.WEIGHT
      types[f'{module_name}.{name}' if module_name else name] = kind
  return types
