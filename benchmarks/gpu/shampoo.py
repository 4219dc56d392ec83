"""Shampoo's step in float32 and in TF32: its time, and what rounding changes.

AlgoPerf 1.0 sets `torch.set_float32_matmul_precision('high')`, under which a
GPU multiplies float32 matrices in TF32 unless the optimizer protects them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu import shapes, timing
from benchmarks.gpu.setting import Rows, Setting
from benchmarks.gpu.synchronisations import total, waits
from weightavg.pytorch.shampoo import DistributedShampoo

FREQUENCY = 100
# Point 1 of the search space shampoo.json.
SETTINGS: dict[str, Any] = {
  'lr': 0.0017486387539278373,
  'betas': (1 - 0.06733926164, 1 - 0.00448403102),
  'weight_decay': 0.0,
  'use_nadam': True,
  'use_nesterov': True,
  'precondition_frequency': FREQUENCY,
}
PRECISIONS = {'float32': 'highest', 'TF32': 'high'}


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
  """The host's setting inside the block, the former one after it."""
  before = torch.get_float32_matmul_precision()
  torch.set_float32_matmul_precision(name)
  try:
    yield
  finally:
    torch.set_float32_matmul_precision(before)


def at_step(optimizer: torch.optim.Optimizer, step: int) -> None:
  """Let the next step be `step`; what it costs depends on nothing else."""
  for group in optimizer.param_groups:
    group['step'] = step - 1


def measure(setting: Setting) -> Rows:
  """Rows `step/<model>/<precision>` and `error/<model>/<precision>`."""
  # The embedding table is left out: most of a step would be its. The larger
  # model's roots are measured where it trains.
  name, all_shapes = next(iter(shapes.families(setting).items()))
  yield from _times(name, all_shapes[1:], setting)
  timing.free(setting.device)
  yield from _errors(name, all_shapes[1:], setting)


def _times(
  name: str, model_shapes: list[tuple[int, ...]], setting: Setting
) -> Rows:
  shampoo = DistributedShampoo(
    shapes.parameters(model_shapes, setting), **SETTINGS
  )
  fused = torch.optim.AdamW(
    shapes.parameters(model_shapes, setting), lr=1e-3, fused=True
  )
  # The first roots, so that every later step is preconditioned.
  at_step(shampoo, FREQUENCY)
  shampoo.step()

  def step(precision: str) -> None:
    at_step(shampoo, FREQUENCY + 1)
    with matmul_precision(precision):
      shampoo.step()

  def roots(precision: str) -> None:
    at_step(shampoo, 2 * FREQUENCY)
    with matmul_precision(precision):
      shampoo.step()

  calls = {
    label: (lambda p=precision: step(p))
    for label, precision in PRECISIONS.items()
  } | {'AdamW, fused': lambda: fused.step()}
  times = timing.interleaved(calls, setting.device, calls=setting.pick(5, 1))
  adamw_ms = times.pop('AdamW, fused')
  for label, ms in times.items():
    precision = PRECISIONS[label]
    root_ms = timing.milliseconds(
      lambda p=precision: roots(p),  # type: ignore[misc]
      setting.device,
    )
    amortised = ms + (root_ms - ms) / FREQUENCY
    waited = waits(lambda p=precision: step(p), setting.device)  # type: ignore[misc]
    yield (
      f'step/{name}/{label}',
      {
        'step_ms': ms,
        'root_step_ms': root_ms,
        'amortised_ms': amortised,
        'of_fused_adamw': amortised / adamw_ms,
        'state_bytes_per_parameter': shampoo.state_bytes()
        / sum(p.numel() for p in shampoo.param_groups[0]['params']),
        'waits': total(waited),
      },
    )


def _gradient(
  shape: torch.Size, step: int, place: int, device: torch.device
) -> torch.Tensor:
  """A gradient as training has them: a decaying spectrum under noise."""
  generator = torch.Generator(device).manual_seed(1_000 * step + place)
  # The dominant directions stay, their sizes change from step to step.
  fixed = torch.Generator(device).manual_seed(place)

  def random(source: torch.Generator, *size: int) -> torch.Tensor:
    return torch.randn(size, generator=source, device=device)

  noise = 1e-5 * random(generator, *shape)
  if len(shape) < 2:
    return 100 * noise
  rank = min(32, *shape)
  left, right = random(fixed, shape[0], rank), random(fixed, rank, shape[1])
  sizes = torch.logspace(-3, -6, rank, device=device)
  with matmul_precision('highest'):
    return left * (sizes * random(generator, rank)) @ right + noise


def _errors(
  name: str, model_shapes: list[tuple[int, ...]], setting: Setting
) -> Rows:
  """Movement of the weights against that of a float64 Shampoo."""
  steps = setting.pick(30, 4)
  settings = SETTINGS | {'precondition_frequency': steps // 2}
  moved: dict[str, list[torch.Tensor]] = {}
  for label, precision, dtype in (
    ('float64', 'highest', torch.float64),
    ('float32', 'highest', torch.float32),
    ('TF32', 'high', torch.float32),
  ):
    weights = [p.to(dtype) for p in shapes.parameters(model_shapes, setting)]
    parameters = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    optimizer = DistributedShampoo(
      parameters, preconditioner_dtype=dtype, **settings
    )
    for step in range(steps):
      for place, p in enumerate(parameters):
        p.grad = _gradient(p.shape, step, place, setting.device).to(dtype)
      with matmul_precision(precision):
        optimizer.step()
    moved[label] = [
      (p.detach() - w.detach()).double()
      for p, w in zip(parameters, weights, strict=True)
    ]
    timing.free(setting.device)
  for label in PRECISIONS:
    errors = [
      float((a - b).norm() / b.norm())
      for a, b in zip(moved[label], moved['float64'], strict=True)
    ]
    yield (
      f'error/{name}/{label}',
      {
        'steps': steps,
        'largest_relative_error': max(errors),
        'median_relative_error': sorted(errors)[len(errors) // 2],
      },
    )
