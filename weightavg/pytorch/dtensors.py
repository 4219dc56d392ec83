"""Parameters that are distributed over ranks as DTensors: FSDP2, HSDP, TP.

Each rank averages the piece that it holds, so an average is a DTensor of the
parameter's own placements. Nothing is gathered by an update or a swap.
"""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor, nn

from weightavg.pytorch.loaded import loaded_class


def is_dtensor(tensor: Tensor) -> bool:
  """True for a tensor that is distributed over the ranks of a mesh."""
  dtensor = loaded_class('torch.distributed.tensor', 'DTensor')
  return dtensor is not None and isinstance(tensor, dtensor)


def local(tensor: Tensor) -> Tensor:
  """This rank's piece, in the tensor's own memory and outside autograd."""
  if is_dtensor(tensor):
    return tensor.detach().to_local()  # type: ignore[attr-defined]
  return tensor.data


def wrap(piece: Tensor, like: Tensor) -> Tensor:
  """The distributed tensor of which each rank holds a piece.

  Args:
    piece: this rank's.
    like: gives mesh, placements and shape; a plain tensor leaves `piece` as it
      is.
  """
  if not is_dtensor(like):
    return piece
  from torch.distributed.tensor import DTensor

  return DTensor.from_local(
    piece,
    like.device_mesh,  # type: ignore[attr-defined]
    like.placements,  # type: ignore[attr-defined]
    run_check=False,
    shape=like.shape,
    stride=like.stride(),
  )


def piece_of(value: Tensor, like: Tensor) -> Tensor:
  """This rank's piece of a saved tensor, which may be distributed otherwise.

  A collective if both are distributed in different ways, or if `value` alone
  is distributed.

  Args:
    value: whole, or a DTensor.
    like: the tensor that the piece belongs to.
  """
  if not is_dtensor(like):
    return value.full_tensor() if is_dtensor(value) else value  # type: ignore[attr-defined]
  mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
  if not is_dtensor(value):
    from torch.distributed.tensor import distribute_tensor

    # Each rank has the whole: it cuts its own piece, without a broadcast.
    value = distribute_tensor(
      value.to(mesh.device_type), mesh, placements, src_data_rank=None
    )
  elif (value.device_mesh, value.placements) != (mesh, placements):  # type: ignore[attr-defined]
    value = value.redistribute(mesh, placements)  # type: ignore[attr-defined]
  return local(value)


def reshard(model: nn.Module) -> None:
  """Drop the whole parameters that FSDP2 keeps after a forward pass.

  They are copies: a forward pass after a swap would see what they held before.
  """
  fsdp = loaded_class('torch.distributed.fsdp', 'FSDPModule')
  if fsdp is None:
    return
  for module in model.modules():
    if isinstance(module, fsdp):
      module.reshard()


def check_wrapper(model: nn.Module) -> None:
  """Refuse FSDP1.

  It keeps the parameters in flat tensors of its own, of which `model` shows
  views that are valid at some times only.

  Raises:
    ValueError: a module is wrapped by FullyShardedDataParallel.
  """
  fsdp = loaded_class('torch.distributed.fsdp', 'FullyShardedDataParallel')
  if fsdp is None:
    return
  for name, module in model.named_modules():
    if isinstance(module, fsdp):
      raise ValueError(
        f'Invalid weights: {name or "the model"!r} is wrapped by '
        'FullyShardedDataParallel (FSDP1), whose parameters are views of flat '
        'tensors. Use torch.distributed.fsdp.fully_shard (FSDP2).'
      )


def process_groups(tensors: Sequence[Tensor]) -> list[dist.ProcessGroup]:
  """The groups, one for each dimension, of the tensors' meshes.

  Args:
    tensors: DTensors.
  """
  meshes = []
  for tensor in tensors:
    if tensor.device_mesh not in meshes:  # type: ignore[attr-defined]
      meshes.append(tensor.device_mesh)  # type: ignore[attr-defined]
  return [mesh.get_group(dim) for mesh in meshes for dim in range(mesh.ndim)]
