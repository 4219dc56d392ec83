"""Averages under CUDA graphs: torch.compile(mode='reduce-overhead').

A graph reads weights at the addresses that it was captured with.
averaging_swap='copy' keeps them; 'exchange' (the default) does not, which is
measured beside it.
"""

import torch
from torch import nn

from benchmarks.gpu import timing
from benchmarks.gpu.setting import Rows, Setting
from benchmarks.gpu.stand_ins import Decoder
from weightavg import AveragingConfig
from weightavg.pytorch import Averager, NadamW


class _Run:
  """A compiled decoder in training, with an EMA over all steps."""

  def __init__(self, setting: Setting, swap: str) -> None:
    torch.manual_seed(0)
    # Two blocks: the time is the compiler's.
    width, depth, vocabulary = setting.pick((512, 2, 8000), (16, 1, 50))
    shape = setting.pick((16, 256), (2, 8))
    self.model = Decoder(width, depth, vocabulary).to(setting.device)
    options = setting.compile_options or {'mode': 'reduce-overhead'}
    self.compiled: nn.Module = torch.compile(self.model, **options)  # type: ignore[assignment]
    self.tokens = torch.randint(vocabulary, shape, device=setting.device)
    self.optimizer = NadamW(self.model.parameters(), lr=1e-3)
    self.averager = Averager.from_config(
      self.model,
      AveragingConfig.from_point(
        averaging_scheme='ema', averaging_every_steps=1, averaging_swap=swap
      ),
      budget=1000,
    )

  def loss(self, model: nn.Module) -> torch.Tensor:
    """Mean cross-entropy of the next tokens."""
    torch.compiler.cudagraph_mark_step_begin()
    logits = model(self.tokens[:, :-1])
    return torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), self.tokens[:, 1:].flatten()
    )

  def step(self) -> float:
    """One step of training; the loss before it."""
    self.optimizer.zero_grad(set_to_none=True)
    loss = self.loss(self.compiled)
    loss.backward()
    value = loss.item()
    self.optimizer.step()
    self.averager.update()
    return value

  @torch.no_grad()
  def losses(self) -> tuple[float, float]:
    """Return the losses of the compiled and of the eager model."""
    return self.loss(self.compiled).item(), self.loss(self.model).item()


def measure(setting: Setting) -> Rows:
  """Rows by the way of swapping."""
  before = torch.get_float32_matmul_precision()
  torch.set_float32_matmul_precision('highest')
  for swap in ('copy', 'exchange'):
    run = _Run(setting, swap)
    for _ in range(setting.pick(6, 2)):
      run.step()
    # Three calls: warm-up, capture, replay.
    for _ in range(3):
      raw_compiled, raw_eager = run.losses()
    weights = [p.detach().clone() for p in run.model.parameters()]
    run.averager.swap_in()
    first_ms = timing.milliseconds(run.losses, setting.device)
    again_ms = timing.milliseconds(run.losses, setting.device)
    shown = [run.losses() for _ in range(3)]
    run.averager.swap_out()
    pairs = zip(weights, run.model.parameters(), strict=True)
    identical = all(torch.equal(w, p.detach()) for w, p in pairs)
    back_compiled, _ = run.losses()
    expected = run.loss(run.model).item()
    stepped = run.step()
    times = timing.interleaved(
      {'compiled': run.step}, setting.device, rounds=setting.pick(9, 1)
    )
    yield (
      swap,
      {
        'loss_raw': raw_eager,
        'loss_average': shown[-1][1],
        'compiled_minus_eager_raw': raw_compiled - raw_eager,
        'compiled_minus_eager_average': max((c - e for c, e in shown), key=abs),
        'compiled_minus_before_swap': back_compiled - raw_compiled,
        'next_step_minus_eager': stepped - expected,
        'raw_bit_identical': identical,
        'step_ms': times['compiled'],
        # Of the compiled and of the eager model; a graph that is captured
        # again takes longer the first time.
        'first_evaluation_ms': first_ms,
        'evaluation_ms': again_ms,
      },
    )
    del run
    timing.free(setting.device)
  torch.set_float32_matmul_precision(before)
