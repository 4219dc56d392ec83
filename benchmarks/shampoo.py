"""Time and state of Shampoo: per step, per step with roots, per rank."""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.measure import THREADS, Ratio, transformer_parameters
from lab.studies.parts import frame
from weightavg.pytorch.shampoo import DistributedShampoo

FREQUENCY = 100
# Point 1 of the winning submission, on the shapes without the embedding.
SETTINGS = {
  'lr': 0.0017486387539278373,
  'betas': (1 - 0.06733926164, 1 - 0.00448403102),
  'weight_decay': 0.08121616522670176,
  'use_nadam': True,
  'use_nesterov': True,
  'precondition_frequency': FREQUENCY,
}
ROUNDS = 12


def _timed(call: Callable[[], object]) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def _at(optimizer: DistributedShampoo, step: int) -> None:
  """Let the next step be `step`, which alone decides its cost."""
  for group in optimizer.param_groups:
    group['step'] = step - 1


def measure() -> dict[str, Ratio]:
  torch.set_num_threads(THREADS)
  parameters = transformer_parameters()[1:]
  shampoo = DistributedShampoo(parameters, **SETTINGS)  # type: ignore[arg-type]
  spread = DistributedShampoo(
    transformer_parameters()[1:],
    spread_roots=True,
    **SETTINGS,  # type: ignore[arg-type]
  )
  adamw = torch.optim.AdamW(transformer_parameters()[1:], lr=1e-3, fused=True)
  for optimizer in (shampoo, spread):
    _at(optimizer, FREQUENCY)
    optimizer.step()  # the first roots, so that all steps precondition
  adamw.step()
  plain, roots, fused = [], [], []
  for _ in range(ROUNDS):
    _at(shampoo, FREQUENCY + 1)
    plain.append(_timed(shampoo.step))
    fused.append(statistics.median(_timed(adamw.step) for _ in range(5)))
  for _ in range(3):
    _at(shampoo, 2 * FREQUENCY)
    roots.append(_timed(shampoo.step))
  # Spread, the longest of a whole period is what stalls; the longest ones are
  # timed again, since a pause of the machine would pass for one.
  steps = range(2 * FREQUENCY, 3 * FREQUENCY)
  lengths = {step: _step_time(spread, step) for step in steps}
  for step in sorted(steps, key=lengths.__getitem__)[-5:]:
    again = [_step_time(spread, step) for _ in range(2)]
    lengths[step] = min(lengths[step], *again)
  ms = {
    'plain': statistics.median(plain) * 1e3,
    'roots': statistics.median(roots) * 1e3,
    'fused': statistics.median(fused) * 1e3,
    'longest': max(lengths.values()) * 1e3,
  }
  amortised = ms['plain'] + (ms['roots'] - ms['plain']) / FREQUENCY
  model = sum(p.numel() * p.element_size() for p in parameters)
  shares = _bytes_of_two_ranks()
  return {
    'shampoo_step/adamw_fused': Ratio(
      amortised / ms['fused'],
      amortised,
      ms['fused'],
      f'torch.optim.AdamW(fused=True); amortised over {FREQUENCY} steps',
      ROUNDS,
    ),
    'shampoo_precondition_step/plain_step': Ratio(
      ms['roots'] / ms['plain'],
      ms['roots'],
      ms['plain'],
      'a step that takes no roots',
      3,
    ),
    'shampoo_precondition_step_spread/plain_step': Ratio(
      ms['longest'] / ms['plain'],
      ms['longest'],
      ms['plain'],
      f'the same; the longest of {FREQUENCY} steps with spread_roots',
      2,
    ),
    'shampoo_state_bytes/params_bytes': Ratio(
      shampoo.state_bytes() / model, None, None, "the parameters' bytes", 1
    ),
    'shampoo_state_bytes_2_ranks/1_rank': Ratio(
      max(shares) / shampoo.state_bytes(),
      None,
      None,
      'one rank alone; the larger of two',
      1,
    ),
    **_steps_to_target(),
  }


def _step_time(optimizer: DistributedShampoo, step: int) -> float:
  """Return the seconds of a step."""
  _at(optimizer, step)
  return _timed(optimizer.step)


def _rank(rank: int, folder: str) -> None:
  torch.set_num_threads(1)
  dist.init_process_group(
    'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
  )
  optimizer = DistributedShampoo(transformer_parameters()[1:], **SETTINGS)  # type: ignore[arg-type]
  size = optimizer.state_bytes()
  dist.destroy_process_group()
  pathlib.Path(folder, f'{rank}.json').write_text(json.dumps(size))


def _bytes_of_two_ranks() -> list[int]:
  with tempfile.TemporaryDirectory() as folder:
    mp.spawn(_rank, (folder,), nprocs=2)
    return [
      json.loads(pathlib.Path(folder, f'{rank}.json').read_text())
      for rank in range(2)
    ]


def _steps_to_target() -> dict[str, Ratio]:
  """Medians over the study's seeds; `make study` measures them."""
  path = pathlib.Path('results/study/study.json')
  if not path.exists():
    print(f'{path} is missing: no steps_to_target. Run `make study` before.')
    return {}
  submissions = {'raw': 'shampoo', 'lawa 1 %': 'shampoo_lawa'} | {
    'ema 1 %': 'shampoo_ema'
  }
  data = frame.read(json.loads(path.read_text()))
  # A run has rows for each kind of average that its point is best for.
  runs = data[(data['optimizer'] == 'shampoo') & (data['tuned_for'] == 'raw')]
  groups = {
    f'steps_to_target/{workload}/{submissions[candidate]}': group
    for (workload, candidate), group in runs.groupby(['workload', 'candidate'])
    if candidate in submissions
  }
  medians = {n: frame.median(g['ratio_to_nadamw']) for n, g in groups.items()}
  return {
    name: Ratio(
      None if median == float('inf') else median,
      None,
      None,
      "NadamW's steps to the same target (no times)",
      len(groups[name]),
    )
    for name, median in medians.items()
  }
