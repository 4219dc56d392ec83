"""Run `collectives` on every rank; rank 0 writes the rows."""

import argparse
import functools
import json
import os
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu import shapes, timing
from benchmarks.gpu.setting import Rows, Setting
from benchmarks.gpu.shampoo import SETTINGS, at_step
from benchmarks.gpu.stand_ins import Decoder
from weightavg import AveragingConfig
from weightavg.pytorch import Averager, NadamW
from weightavg.pytorch.shampoo import DistributedShampoo, distribution
from weightavg.pytorch.shampoo.blocking import Block

STEPS = 6


def main() -> None:
  """Join the process group, measure, write."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--backend', choices=('nccl', 'gloo'), required=True)
  parser.add_argument('--rows', required=True)
  parser.add_argument('--smoke', action='store_true')
  arguments = parser.parse_args()
  # Ranks on gloo share the first GPU.
  device = torch.device('cpu' if arguments.smoke else 'cuda:0')
  if device.type == 'cuda':
    torch.cuda.set_device(device)
  dist.init_process_group(arguments.backend)
  setting = Setting(device, arguments.smoke)
  for rows in (_placements, _communication):
    for row in rows(setting):
      if dist.get_rank() == 0:
        with open(arguments.rows, 'a', encoding='utf-8') as file:
          file.write(json.dumps(row) + '\n')
  dist.destroy_process_group()


def _averager(model: torch.nn.Module, scheme: str, placement: str) -> Averager:
  window: dict[str, Any] = {'lawa_window': 3} if scheme == 'lawa' else {}
  config = AveragingConfig.from_point(
    averaging_scheme=scheme,
    averaging_every_steps=1,
    averaging_placement=placement,
    **window,
  )
  return Averager.from_config(model, config, budget=1000, collective=True)


def _placements(setting: Setting) -> Rows:
  """DDP training; the sharded average against the one beside the weights."""
  torch.manual_seed(0)
  width, depth, vocabulary = setting.pick((512, 6, 8000), (16, 1, 50))
  batch = setting.pick((16, 128), (2, 8))
  decoder = Decoder(width, depth, vocabulary).to(setting.device)
  cuda = setting.device.type == 'cuda'
  model = DistributedDataParallel(decoder, device_ids=[0] if cuda else None)
  optimizer = NadamW(model.parameters(), lr=1e-3)
  averagers = {
    (scheme, placement): _averager(model, scheme, placement)
    for scheme in ('ema', 'lawa')
    for placement in ('device', 'sharded', 'cpu')
  }
  generator = torch.Generator(setting.device).manual_seed(dist.get_rank())
  for _ in range(STEPS):
    tokens = torch.randint(
      vocabulary, batch, generator=generator, device=setting.device
    )
    optimizer.zero_grad(set_to_none=True)
    logits = model(tokens[:, :-1])
    torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), tokens[:, 1:].flatten()
    ).backward()
    optimizer.step()
    for averager in averagers.values():
      averager.update()
  raw = [p.detach().clone() for p in model.parameters()]
  for scheme in ('ema', 'lawa'):
    shown: dict[str, list[torch.Tensor]] = {}
    for placement in ('device', 'sharded', 'cpu'):
      averager = averagers[scheme, placement]
      taken = timing.milliseconds(averager.swap_in, setting.device)
      shown[placement] = [p.detach().clone() for p in model.parameters()]
      state_ready = averager.state_dict()['complete']
      averager.swap_out()
      pairs = zip(raw, model.parameters(), strict=True)
      assert averager.placement is not None
      yield (
        f'{scheme}/{placement}',
        {
          'largest_difference_to_device': _distance(
            shown[placement], shown['device']
          ),
          'raw_bit_identical': all(torch.equal(r, p) for r, p in pairs),
          'first_swap_in_ms': taken,
          'kept_bytes_of_model': averager.placement.nbytes()
          / sum(p.numel() * p.element_size() for p in raw),
          'checkpoint_complete': state_ready,
        },
      )


def _distance(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> float:
  pairs = zip(tensors, others, strict=True)
  return max(float((t - o).abs().max()) for t, o in pairs)


def _communication(setting: Setting) -> Rows:
  """Shampoo's exchange in float32 and in bfloat16."""
  _, all_shapes = next(iter(shapes.families(setting).items()))
  model_shapes = all_shapes[1:]
  moved: dict[str, list[torch.Tensor]] = {}
  for dtype in (torch.float32, torch.bfloat16):
    label = str(dtype).removeprefix('torch.')
    parameters = shapes.parameters(model_shapes, setting)
    before = [p.detach().clone() for p in parameters]
    shampoo = DistributedShampoo(
      parameters, communication_dtype=dtype, **SETTINGS
    )
    at_step(shampoo, SETTINGS['precondition_frequency'])
    shampoo.step()
    for _ in range(STEPS):
      shampoo.step()
    step_ms = timing.interleaved(
      {label: shampoo.step}, setting.device, rounds=setting.pick(5, 1)
    )[label]
    moved[label] = [
      p.detach() - b for p, b in zip(parameters, before, strict=True)
    ]
    errors = [
      float((a - b).norm() / b.norm())
      for a, b in zip(moved[label], moved['float32'], strict=True)
    ]
    values: dict[str, Any] = {
      'step_ms': step_ms,
      'largest_relative_difference_to_float32': max(errors),
      'ranks_agree': _agree(parameters),
    }
    values['exchange_ms'] = _exchange_ms(parameters, dtype, setting)
    yield f'shampoo/{label}', values
    timing.free(setting.device)


def _agree(parameters: list[torch.nn.Parameter]) -> bool:
  """Return True if all ranks hold the same weights, bit for bit."""
  flat = torch.cat([p.detach().reshape(-1) for p in parameters])
  first = flat.clone()
  dist.broadcast(first, src=0)
  same = torch.tensor(float(torch.equal(flat, first)), device=flat.device)
  dist.all_reduce(same, op=dist.ReduceOp.MIN)
  return bool(same)


def _exchange_ms(
  parameters: list[torch.nn.Parameter], dtype: torch.dtype, setting: Setting
) -> float:
  """One exchange of all blocks alone: packing, all-gather, unpacking.

  Shampoo makes none with one rank; here one rank makes it too.
  """
  ranks = distribution.RankGroup(
    size=dist.get_world_size(),
    rank=dist.get_rank(),
    process_group=dist.group.WORLD,
  )
  shampoo = DistributedShampoo(parameters, **SETTINGS)
  views: dict[Block, torch.Tensor] = {}
  for info in shampoo._infos:
    views |= info.views(info.parameter.detach())
  owners = distribution.assign(list(views), [100], ranks.size)
  exchange = distribution.Exchange(owners, ranks, parameters, dtype, None)
  calls = {'share': functools.partial(exchange.share, views)}
  return timing.interleaved(calls, setting.device)['share']


if __name__ == '__main__':
  # Ranks of one machine find each other by address.
  os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
  main()
