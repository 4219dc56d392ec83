"""Which of Shampoo's matrix products may a GPU compute in TF32?

A tensor core rounds both operands of a float32 product to TF32, 10 mantissa
bits, and accumulates in float32. Shampoo has three kinds of products:

  factors      A_k <- beta2 A_k + (1 - beta2) G_(k) G_(k)^T, every step
  building     X_k = Y Y^T with Y = Q diag(w^(-q/2)), every F steps
  application  S = f multiplied by X_k on every mode, every step

The parts measure one kind at a time and all three together, on a CPU with
rounded operands: `spectra` for matrices of given condition numbers, `gradients`
along a training run, `steps` up to a workload's target. `gpu` repeats `spectra`
with a GPU's own TF32 and times Shampoo's steps.

  python -m benchmarks.tf32 {spectra,gradients,steps,gpu}

Results go to results/tf32/; docs/tf32.md draws the conclusions.
"""

import contextlib
import csv
import functools
import json
import pathlib
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.measure import transformer_parameters
from benchmarks.tf32_products import (
  VARIANTS,
  RoundedProducts,
  tensor_cores,
  tf32_products,
)
from lab.core import command_line, logs
from lab.core.errors import InputError
from lab.workloads import build_workload
from weightavg.pytorch.shampoo import DistributedShampoo, symmetric_pairs
from weightavg.pytorch.shampoo.inverse_roots import half_roots

OUTPUT = pathlib.Path('results/tf32')
WORKLOAD = 'stdlib_lm'


# Given spectra.


def _relative(value: torch.Tensor, exact: torch.Tensor) -> float:
  return float((value.double() - exact).norm() / exact.norm())


def spectra(
  device: str = 'cpu',
  tf32: Callable[[], contextlib.AbstractContextManager] = RoundedProducts,
) -> list[dict[str, Any]]:
  """Errors of X and of X g, for g drawn with the covariance A.

  A is the mean of 4 d such gradients' outer products, with eigenvalues of its
  expectation from 1 down to 1 / condition, and epsilon = 1e-12.
  """
  rows = []
  for dim in (64, 512):
    for order in (1, 2):
      for condition in (1e2, 1e4, 1e6, 1e8):
        rows.append(_spectrum(dim, order, condition, device, tf32))
        print(rows[-1], flush=True)
  return rows


def _spectrum(
  dim: int,
  order: int,
  condition: float,
  device: str,
  tf32: Callable[[], contextlib.AbstractContextManager],
) -> dict[str, Any]:
  generator = torch.Generator().manual_seed(0)
  exponent, epsilon = 1 / (2 * order), 1e-12
  basis, _ = torch.linalg.qr(
    torch.randn(dim, dim, generator=generator, dtype=torch.float64)
  )
  scale = condition ** (-0.5 * torch.linspace(0, 1, dim, dtype=torch.float64))
  draws = torch.randn(dim, 4 * dim, generator=generator, dtype=torch.float64)
  gradients = ((basis * scale) @ draws).float().to(device)
  fresh = torch.randn(dim, 32, generator=generator, dtype=torch.float64)
  fresh = ((basis * scale) @ fresh).float().to(device)
  result: dict[str, Any] = {'dim': dim, 'order': order, 'condition': condition}
  exact: dict[str, torch.Tensor] = {}
  for name in ('float64', *VARIANTS):
    dtype = torch.float64 if name == 'float64' else torch.float32
    pair = symmetric_pairs.new_pair(1, dim, dtype, torch.device(device))
    factor = symmetric_pairs.factor_half(pair)
    root = symmetric_pairs.root_half(pair)
    with tf32_products(VARIANTS.get(name, ()), tf32):
      for part in gradients.split(dim, dim=1):
        factor.add_gram(part[None].to(dtype), keep=1.0, add=0.25 / dim)
      halves, _, _ = half_roots(factor.unpack(), exponent, epsilon)
      root.add_gram(halves, keep=0.0, add=1.0)
      applied = root.multiply(fresh[None].to(dtype))
    values = {'root': root.unpack(), 'direction': applied}
    if name == 'float64':
      exact = values
      continue
    result[name] = {
      key: _relative(value, exact[key]) for key, value in values.items()
    }
  return result


def gpu() -> dict[str, Any]:
  """Measure the spectra with real TF32, and the time of Shampoo's steps."""
  if not torch.cuda.is_available():
    raise SystemExit('Invalid device: no CUDA. Run the other parts on a CPU.')
  milliseconds = {
    setting: _step_times(setting) for setting in ('highest', 'high')
  }
  print(milliseconds, flush=True)
  return {
    'device': torch.cuda.get_device_name(),
    'torch': torch.__version__,
    'step_ms': milliseconds,
    'spectra': spectra('cuda', tensor_cores),
  }


def _step_times(setting: str, frequency: int = 10) -> dict[str, float]:
  """Time steps on the transformer's shapes under the host's setting."""
  parameters = []
  for p in transformer_parameters()[1:]:
    parameters.append(torch.nn.Parameter(p.detach().cuda()))
    assert p.grad is not None
    parameters[-1].grad = p.grad.cuda()
  optimizer = DistributedShampoo(
    parameters, lr=1e-3, precondition_frequency=frequency, use_nadam=True
  )
  times: dict[str, list[float]] = {'plain': [], 'roots': []}
  torch.set_float32_matmul_precision(setting)
  try:
    for step in range(1, 4 * frequency + 1):
      torch.cuda.synchronize()
      start = time.perf_counter()
      optimizer.step()
      torch.cuda.synchronize()
      # The first roots also load the libraries.
      if step > frequency:
        kind = 'plain' if step % frequency else 'roots'
        times[kind].append((time.perf_counter() - start) * 1e3)
  finally:
    torch.set_float32_matmul_precision('highest')
  return {kind: statistics.median(values) for kind, values in times.items()}


# Gradients of a run.


class Observer:
  """Shampoo on gradients that are handed to it; its weights stay zero."""

  def __init__(
    self,
    model: torch.nn.Module,
    dtype: torch.dtype,
    kinds: Sequence[str],
    options: dict[str, Any],
  ) -> None:
    self._kinds = kinds
    self._weights = {
      name: torch.nn.Parameter(torch.zeros_like(p, dtype=dtype))
      for name, p in model.named_parameters()
    }
    self._optimizer = DistributedShampoo(
      self._weights.items(),
      preconditioner_dtype=dtype,
      **options | {'lr': 1.0, 'weight_decay': 0.0},
    )

  def directions(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The direction P of every parameter, in float64."""
    for name, p in model.named_parameters():
      weight = self._weights[name]
      weight.data.zero_()
      assert p.grad is not None
      weight.grad = p.grad.to(weight.dtype)
    with tf32_products(self._kinds):
      self._optimizer.step()
    return {k: -w.detach().double() for k, w in self._weights.items()}

  def roots(self) -> dict[str, torch.Tensor]:
    """The root of every block and mode, in float64."""
    result = {}
    for name, saved in self._optimizer.state_dict()['parameters'].items():
      for index, block in enumerate(saved['blocks']):
        for key, pair in block.items():
          if key.startswith('pair'):
            root = symmetric_pairs.root_half(pair[None]).unpack()
            result[f'{name}[{index}].{key}'] = root[0].double()
    return result


def _build_options(point: dict[str, Any]) -> dict[str, Any]:
  return {
    'lr': point['learning_rate'],
    'betas': (1 - point['one_minus_beta1'], point['beta2']),
    'weight_decay': point['weight_decay'],
    'use_nadam': True,
    'use_nesterov': True,
  }


def _point() -> dict[str, Any]:
  workload = build_workload(WORKLOAD)
  return json.loads(pathlib.Path(workload.tuned_search_space).read_text())[0]


def _train(steps: int, options: dict[str, Any]) -> Iterator[torch.nn.Module]:
  """A constant-rate run of Shampoo; yields the model with its gradients."""
  workload = build_workload(WORKLOAD)
  model, _ = workload.init_model_fn((0, 0))
  queue = workload._build_input_queue((0, 0), 'train', '', workload.batch_size)
  optimizer = DistributedShampoo(model.named_parameters(), **options)
  for _ in range(steps):
    batch = next(queue)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(
      model(batch['inputs']).flatten(0, 1), batch['targets'].flatten()
    )
    loss.backward()
    yield model
    optimizer.step()


def gradients(steps: int = 1000, every: int = 10) -> dict[str, Any]:
  """Errors of roots and directions along a training run, against float64."""
  options = _build_options(_point())
  model, _ = build_workload(WORKLOAD).init_model_fn((0, 0))
  exact = Observer(model, torch.float64, (), options)
  observers = {
    name: Observer(model, torch.float32, kinds, options)
    for name, kinds in VARIANTS.items()
  }
  errors: dict[str, dict[str, list[float]]] = {
    name: {'root': [], 'one_minus_cosine': [], 'direction': []}
    for name in VARIANTS
  }
  for step, trained in enumerate(_train(steps, options), start=1):
    right = exact.directions(trained)
    directions = {k: o.directions(trained) for k, o in observers.items()}
    # The first roots are taken at step 100.
    if step >= 100 and step % every == 0:
      for name, values in directions.items():
        for key, value in values.items():
          cosine = torch.nn.functional.cosine_similarity(
            value.flatten(), right[key].flatten(), dim=0
          )
          errors[name]['one_minus_cosine'].append(float(1 - cosine))
          errors[name]['direction'].append(_relative(value, right[key]))
    if step >= 100 and step % 100 == 0:
      roots = exact.roots()
      for name, observer in observers.items():
        errors[name]['root'] += [
          _relative(root, roots[key]) for key, root in observer.roots().items()
        ]
      print(f'step {step}', flush=True)
  return {
    name: {
      key: {'median': statistics.median(v), 'max': max(v), 'count': len(v)}
      for key, v in kinds.items()
    }
    for name, kinds in errors.items()
  }


# Steps to target.


def train_to_target(variant: str, seed: int) -> dict[str, Any]:
  """One run of the bare Shampoo submission, in this process."""
  point = _point()
  point['one_minus_beta2'] = 1.0 - point.pop('beta2')
  with tempfile.TemporaryDirectory() as folder:
    space = pathlib.Path(folder, 'space.json')
    space.write_text(json.dumps([point]))
    workload = build_workload(WORKLOAD)
    sys.argv = [
      'lab.run',
      f'--workload={WORKLOAD}',
      '--submission_path=submissions/shampoo/submission.py',
      f'--tuning_search_space={space}',
      f'--experiment_dir={folder}',
      '--experiment_name=tf32',
      f'--rng_seed={seed}',
      f'--eval_every_steps={round(0.01 * workload.step_hint)}',
      '--nosave_checkpoints',
      '--run_to_budget',
    ]
    torch.set_num_threads(1)
    with tf32_products(VARIANTS[variant]), contextlib.suppress(SystemExit):
      runpy.run_module('lab.run', run_name='__main__')
    (path,) = pathlib.Path(folder).rglob('eval_measurements.csv')
    with path.open() as file:
      rows = list(csv.DictReader(file))
  column = f'validation/{workload.target_metric_name}'
  reached = [
    int(row['global_step'])
    for row in rows
    if workload.is_better(float(row[column]), workload.validation_target_value)
  ]
  return {
    'variant': variant,
    'seed': seed,
    'steps_to_target': reached[0] if reached else None,
    'best_validation': min(float(row[column]) for row in rows),
  }


def steps(seeds: Sequence[int], path: pathlib.Path) -> list[dict[str, Any]]:
  """Every variant and seed in a process of its own; finished ones are kept."""
  done = json.loads(path.read_text()) if path.exists() else []
  for seed in seeds:
    for variant in VARIANTS:
      if any((r['variant'], r['seed']) == (variant, seed) for r in done):
        continue
      command = [sys.executable, '-m', 'benchmarks.tf32', 'run']
      command += [f'--variant={variant}', f'--seed={seed}']
      output = subprocess.run(command, check=True, stdout=subprocess.PIPE)
      done.append(json.loads(output.stdout.splitlines()[-1]))
      print(done[-1], flush=True)
      logs.write_json(str(path), done)
  return done


def main() -> None:
  parser = command_line.Parser('python -m benchmarks.tf32', description=__doc__)
  parser.formatter_class = command_line.Formatter
  parser.add_argument(
    'part', choices=['spectra', 'gradients', 'steps', 'gpu', 'run']
  )
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--variant', choices=list(VARIANTS), default='float32')
  parser.add_argument('--seed', type=int, default=0)
  arguments = parser.parse_args()
  seeds = command_line.seeds_of(arguments.seeds)
  if arguments.seed < 0:
    raise InputError(f'Invalid seed={arguments.seed}. Must be in [0, inf).')
  if arguments.part == 'run':
    print(json.dumps(train_to_target(arguments.variant, arguments.seed)))
    return
  OUTPUT.mkdir(parents=True, exist_ok=True)
  path = OUTPUT / f'{arguments.part}.json'
  parts: dict[str, Callable[[], Any]] = {
    'spectra': spectra,
    'gradients': gradients,
    'gpu': gpu,
    'steps': functools.partial(steps, seeds, path),
  }
  logs.write_json(str(path), parts[arguments.part]())


if __name__ == '__main__':
  command_line.run(main)
