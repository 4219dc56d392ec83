"""A training step with and without averaging, on one model in turn.

Each pair is a submission with EMA and its control without averaging, on the
same model: eager, then compiled as the benchmark's runner compiles it. The
average takes a sample at every step here, which gives the cost of a sample; at
the default cadence a sample comes every `steps_between_samples` steps.
"""

import functools

import torch
from torch import nn

from benchmarks.gpu import timing
from benchmarks.gpu.setting import Attempts, Rows, Setting
from benchmarks.gpu.shampoo import at_step
from benchmarks.gpu.synchronisations import waits
from benchmarks.gpu.trainer import Trainer
from benchmarks.gpu.workloads import Case, build
from weightavg.schemes.base import DEFAULT_EVERY

FREQUENCY = 100
# What is run of each workload: the first that come are the first that are kept
# if the section runs out of time.
PAIRS = {
  'imagenet_vit': (
    ('eager', 'nadamw'),
    ('compiled', 'nadamw'),
    ('compiled', 'shampoo'),
  ),
  'finewebedu_lm': (
    ('eager', 'nadamw'),
    ('compiled', 'nadamw'),
    ('compiled', 'shampoo'),
  ),
  'wmt': (('eager', 'nadamw'), ('eager', 'shampoo')),
  'imagenet_resnet': (('eager', 'nadamw'),),
}


def measure(setting: Setting, name: str) -> Rows:
  """Rows `<model>/<submission>/<eager or compiled>`."""
  case = build(name, setting)
  models = {'eager': case.model}
  yield (
    case.name,
    {
      'model_of': case.origin,
      'parameters_millions': sum(p.numel() for p in case.model.parameters())
      / 1e6,
      'examples': case.examples,
      'matmul_precision': torch.get_float32_matmul_precision(),
    },
  )
  attempts = Attempts()
  for mode, optimizer in PAIRS[name]:
    label = f'{case.name}/{optimizer}_ema/{mode}'
    with attempts.one(label):
      if mode not in models:
        models[mode] = case.compiled(setting)
      yield label, _pair(case, models[mode], optimizer, setting)
    timing.free(setting.device)
  attempts.check()


def sections() -> dict[str, functools.partial]:
  """One section for each workload."""
  return {
    f'train_{name}': functools.partial(measure, name=name) for name in PAIRS
  }


def _pair(
  case: Case, model: nn.Module, optimizer: str, setting: Setting
) -> dict:
  device = setting.device
  timing.free(device)
  control = Trainer(case, model, optimizer)
  control.steps(2)
  timing.free(device)
  control.steps(2)
  values: dict = {'control_peak_gigabytes': timing.peak_gigabytes(device)}
  if optimizer == 'shampoo':
    # The first roots, so that all steps after them are preconditioned.
    at_step(control.optimizer, FREQUENCY)
    values['root_step_ms'] = timing.milliseconds(control.step, device)
    at_step(control.optimizer, FREQUENCY + 1)
  averaged = Trainer(
    case,
    model,
    f'{optimizer}_ema',
    averaging_every_steps=1,
    averaging_every=None,
  )
  averaged.optimizer.load_state_dict(control.optimizer.state_dict())
  averaged.steps(2)
  values['average_gigabytes'] = averaged.averager.placement.nbytes() / 1e9
  values |= _evaluation(averaged, setting)
  count = setting.pick(4, 1)
  times = timing.interleaved(
    {
      'control': lambda: control.steps(count),
      'averaged': lambda: averaged.steps(count),
    },
    device,
    rounds=setting.pick(4, 1),
  )
  every = max(1, round(DEFAULT_EVERY * case.workload.step_hint))
  control_ms = times['control'] / count
  sample_ms = times['averaged'] / count - control_ms
  values = {
    'control_ms': control_ms,
    'sample_ms': sample_ms,
    'sample_percent_of_step': 100 * sample_ms / control_ms,
    'steps_between_samples': every,
    'percent_at_that_cadence': 100 * sample_ms / control_ms / every,
  } | values
  if optimizer == 'shampoo':
    values['amortised_ms'] = (
      control_ms + (values['root_step_ms'] - control_ms) / FREQUENCY
    )
  values['waits_control'] = waits(control.step, device)
  values['waits_with_sample'] = waits(averaged.step, device)
  values['weights_finite'] = all(
    bool(p.isfinite().all()) for p in case.model.parameters()
  )
  return values


def _evaluation(trainer: Trainer, setting: Setting) -> dict:
  """An evaluation in the middle: its cost and what it leaves behind."""
  device = setting.device
  raw = [p.detach().clone() for p in trainer.case.model.parameters()]
  trainer.logits()  # compiles, if the model is
  graphs = _graphs()
  swap_in = timing.milliseconds(trainer.prepare_for_eval, device)
  trainer.logits()
  swap_out = timing.milliseconds(trainer.averager.swap_out, device)
  pairs = zip(raw, trainer.case.model.parameters(), strict=True)
  identical = all(torch.equal(r, p.detach()) for r, p in pairs)
  trainer.step()
  return {
    'swap_in_ms': swap_in,
    'swap_out_ms': swap_out,
    'raw_bit_identical': identical,
    'graphs_compiled_by_swap': _graphs() - graphs,
  }


def _graphs() -> int:
  """Graphs that torch.compile has made so far in this process."""
  from torch._dynamo.utils import counters

  return counters['stats']['unique_graphs']
