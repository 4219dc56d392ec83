"""The average outside of the model that it is an average of."""

import copy
from typing import Any

from torch import Tensor, nn

from weightavg.pytorch import dtensors, export, models, multi_tensor
from weightavg.pytorch.averager_evaluation import AveragerEvaluation


class AverageOutside(AveragerEvaluation):
  """An average as a state dict, in another model, or for another library."""

  def averaged_state_dict(self) -> dict[str, Any]:
    """The model's state dict with the average in place of the weights.

    Keys are those of the model inside its wrappers, tensors are copies: the
    result loads into the model's class by `load_state_dict` and can be saved by
    safetensors. A collective with placement='sharded'. If the model's state
    dict holds other tensors than its parameters, as after a hook that casts
    them, the average is swapped in for it.

    Raises:
      RuntimeError: the averager was built from tensors, not from a model; with
        an interpolation also between `before_step` and `update`.

    >>> from weightavg import Ema
    >>> from weightavg.pytorch import Averager
    >>> averager = Averager(nn.Linear(2, 1), Ema(0.999))
    >>> averager.update()
    >>> sorted(averager.averaged_state_dict())
    ['bias', 'weight']
    """
    self._refuse_in_step('averaged_state_dict()')
    self._weights.follow()
    model = self._weights.required_model()
    averages = [
      (tensor, dtensors.wrap(average, tensor))
      for tensor, average in zip(
        self._weights.tensors, self._average(), strict=True
      )
    ]
    found = export.averaged_state(
      model, {id(tensor): average for tensor, average in averages}
    )
    if found is not None:
      return found
    with self.evaluating():
      return export.copies(model.state_dict())

  def copy_to(self, model: nn.Module) -> None:
    """Write the average, and the other entries of the state, to another model.

    Args:
      model: of the same architecture, wrapped or not, on any device. One of the
        two may be sharded or both; all ranks call it then.

    Raises:
      ValueError: it has other tensors; nothing has been written.
    """
    if isinstance(model, nn.Module) and (
      models.unwrap(model) is self._weights.model
    ):
      self._refuse_in_step('copy_to()')
      self._refuse_shown('copy_to()')
      self._write_to(model)
      return
    export.load_into(model, self.averaged_state_dict())

  def _write_to(self, model: nn.Module) -> None:
    """Write the average to the model itself, or to a copy of it.

    By parameter, as its state dict may be a part of it, or have other names.
    """
    named: dict[str, Tensor] = dict(models.named_parameters(model))
    named |= {s.name: s.tensor for s in models.running_statistics(model)}
    self._weights.follow()
    # Not by `.data`: that the weights were changed must be seen.
    targets = [named[name].detach() for name in self._weights.names]
    pieces = [
      dtensors.local(t) if dtensors.is_dtensor(t) else t for t in targets
    ]
    multi_tensor.copy_(pieces, self._average())

  def averaged_model(self) -> nn.Module:
    """A copy of the model that holds the average, in evaluation mode.

    A model under `fully_shard` cannot be copied: torch raises AssertionError.
    Build another one for `copy_to`.
    """
    self._refuse_in_step('averaged_model()')
    result = copy.deepcopy(self._weights.required_model())
    self._write_to(result)
    return result.eval()

  def export_state(self, library: str) -> dict[str, Any]:
    """The average as the state dict of another library.

    Args:
      library: 'torch' for torch.optim.swa_utils.AveragedModel, 'ema_pytorch'
        for ema_pytorch.EMA (include_online_model=False), which replaces an
        average of at most its `update_after_step` (100) steps by the weights,
        'timm' for its ModelEmaV2 and ModelEmaV3.
    """
    return export.to_library(
      self.averaged_state_dict(), library, self.samples, self.step
    )
