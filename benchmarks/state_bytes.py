"""Measure the memory of an average per rank, in models."""

import json
import pathlib
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.measure import Ratio, transformer_parameters
from weightavg import AveragingConfig
from weightavg.pytorch import Averager

RANKS = {'device': 1, 'cpu': 1, 'sharded': 2}
SCHEMES = ('lawa', 'ema', 'polynomial', 'auto')
# The default candidates but one.
FEWER = 'raw, ema 0.01, ema 0.1, polynomial 4'


def _bytes(placement: str, scheme: str, candidates: str | None = None) -> float:
  parameters = transformer_parameters()
  averager = Averager.from_config(
    [(str(i), p) for i, p in enumerate(parameters)],
    AveragingConfig.from_point(
      averaging_scheme=scheme,
      averaging_placement=placement,
      averaging_every_steps=1,
      # At the default horizon, five samples.
      averaging_horizon=0.01 if scheme in ('lawa', 'ema') else None,
      averaging_candidates=candidates,
    ),
    budget=500,
  )
  for _ in range(6):
    averager.update()
  if averager.choice.names:
    averager.select(1)  # not the raw weights
  with averager.evaluating():
    pass
  assert averager.placement is not None
  model = sum(p.numel() * p.element_size() for p in parameters)
  return averager.placement.nbytes() / model


def _sizes(placement: str) -> dict[str, float]:
  sizes = {
    f'state_bytes/{placement}/{scheme}': _bytes(placement, scheme)
    for scheme in SCHEMES
  }
  # What one more candidate takes.
  more = sizes[f'state_bytes/{placement}/auto'] - _bytes(
    placement, 'auto', FEWER
  )
  return sizes | {f'state_bytes_per_candidate/{placement}': more}


def _rank(rank: int, folder: str) -> None:
  torch.set_num_threads(1)
  dist.init_process_group(
    'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
  )
  sizes = _sizes('sharded')
  dist.barrier()
  dist.destroy_process_group()
  pathlib.Path(folder, f'{rank}.json').write_text(json.dumps(sizes))


def measure() -> dict[str, Ratio]:
  results = {placement: _sizes(placement) for placement in ('device', 'cpu')}
  with tempfile.TemporaryDirectory() as folder:
    mp.spawn(_rank, (folder,), nprocs=2)
    ranks = [
      json.loads(pathlib.Path(folder, f'{r}.json').read_text())
      for r in range(2)
    ]
  results['sharded'] = {key: max(r[key] for r in ranks) for key in ranks[0]}
  return {
    name: Ratio(
      ratio,
      None,
      None,
      f"the model's bytes; the larger of {RANKS[placement]} rank(s)",
      1,
    )
    for placement, sizes in results.items()
    for name, ratio in sizes.items()
  }
