"""Every placement of an average: step, swap and memory on one model.

An average takes one sample in SAMPLE_EVERY steps, in the middle of those that
are timed. `sample_ms` is what a sample adds to them together: a copy to host
memory may overlap with the steps after it.
"""

import time
from collections.abc import Callable

import torch

from benchmarks.gpu import timing
from benchmarks.gpu.setting import Attempts, Rows, Setting
from benchmarks.gpu.synchronisations import total, waits
from benchmarks.gpu.trainer import Trainer
from benchmarks.gpu.workloads import Case, build

SAMPLE_EVERY = 6
SCHEMES = ('ema', 'lawa')
PLACEMENTS = ('device', 'cpu', 'sharded')
# Two samples, so that LAWA's buffers are those of a short window.
_WINDOW = {'lawa_window': 2, 'averaging_horizon': None}


def measure(setting: Setting) -> Rows:
  """Rows `<model>/<scheme>/<placement>`."""
  case = build('finewebedu_lm', setting)
  if not setting.smoke:
    # A part of the batch: times of samples, not of steps, are asked for.
    case.examples //= 8
    case.batch = {
      key: value if value is None else value[: case.examples]
      for key, value in case.batch.items()
    }
  control = Trainer(case, case.model, 'nadamw')
  control.steps(2)
  timing.free(setting.device)
  control.steps(2)
  peak = timing.peak_gigabytes(setting.device)
  yield f'{case.name}/none', {'peak_gigabytes': peak, 'model_of': case.origin}
  attempts = Attempts()
  for scheme in SCHEMES:
    for placement in PLACEMENTS:
      label = f'{case.name}/{scheme}/{placement}'
      with attempts.one(label):
        yield label, _placed(case, control, scheme, placement, setting)
  attempts.check()


def _placed(
  case: Case, control: Trainer, scheme: str, placement: str, setting: Setting
) -> dict:
  device = setting.device
  timing.free(device)
  before = _allocated(device)
  trainer = Trainer(
    case,
    case.model,
    f'nadamw_{scheme}',
    averaging_placement=placement,
    averaging_every_steps=SAMPLE_EVERY,
    averaging_every=None,
    **(_WINDOW if scheme == 'lawa' else {}),
  )
  # Both share the moments of the control, which take no further memory.
  trainer.state['optimizer'] = control.optimizer
  trainer.state['scheduler'] = control.state['scheduler']
  averager = trainer.averager
  trainer.steps(SAMPLE_EVERY * (2 if scheme == 'lawa' else 1))
  trainer.steps(SAMPLE_EVERY // 2)
  times = timing.interleaved(
    {
      'control': lambda: control.steps(SAMPLE_EVERY),
      'averaged': lambda: trainer.steps(SAMPLE_EVERY),
    },
    device,
    rounds=setting.pick(3, 1),
    warmup=0,
  )
  raw = [p.detach().clone() for p in case.model.parameters()]
  swap_in, swap_out = [], []
  for _ in range(3):
    swap_in.append(timing.milliseconds(averager.swap_in, device))
    swap_out.append(timing.milliseconds(averager.swap_out, device))
  pairs = zip(raw, case.model.parameters(), strict=True)
  identical = all(torch.equal(r, p.detach()) for r, p in pairs)
  del raw
  timing.free(device)
  kept = _allocated(device)
  trainer.steps(SAMPLE_EVERY)
  averager.swap_in()
  peak = timing.peak_gigabytes(device)
  averager.swap_out()
  return {
    'steps_ms': times['averaged'],
    'control_ms': times['control'],
    'sample_ms': times['averaged'] - times['control'],
    'first_swap_in_ms': swap_in[0],
    'swap_in_ms': min(swap_in[1:]),
    'swap_out_ms': min(swap_out),
    'raw_bit_identical': identical,
    'device_gigabytes': None if kept is None else kept - (before or 0.0),
    'kept_gigabytes': averager.placement.nbytes() / 1e9,
    'peak_gigabytes': peak,
    'host_ms_of_sample': _host_milliseconds(trainer, device),
    'waits_of_sample': total(waits(_sampling(trainer), device)),
  }


def _sampling(trainer: Trainer) -> Callable[[], None]:
  """The averager's update at the next step that samples."""
  averager = trainer.averager
  while not averager.sampling.is_sampled(averager.step + 1):
    averager.update()
  return averager.update


def _host_milliseconds(trainer: Trainer, device: torch.device) -> float:
  """Measure the host's time in a sample while the device is idle."""
  taken = []
  for _ in range(3):
    update = _sampling(trainer)
    trainer.averager.state_dict()  # waits for the sample before
    timing.synchronize(device)
    start = time.perf_counter()
    update()
    taken.append((time.perf_counter() - start) * 1e3)
  return min(taken)


def _allocated(device: torch.device) -> float | None:
  if device.type != 'cuda':
    return None
  return torch.cuda.memory_allocated(device) / 1e9
