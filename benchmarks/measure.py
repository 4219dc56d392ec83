"""Interleaved ratios on the parameter shapes of a 23 M transformer."""

import dataclasses
import gc
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from lab.core import command_line, logs
from lab.core.errors import InputError

# Committed results, which the documentation shows, and those of this machine.
COMMITTED = pathlib.Path(__file__).parents[1] / 'results' / 'bench'
LOCAL = COMMITTED / 'local'
BENCHMARKS = 'bench.json'
TIME_BREAKDOWN = 'time_breakdown.json'

THREADS = 2
SHAPES = [(8000, 512)] + 6 * [
  (1536, 512),
  (1536,),
  (512, 512),
  (512,),
  (512,),
  (512,),
  (2048, 512),
  (2048,),
  (512, 2048),
  (512,),
  (512,),
  (512,),
]


def transformer_parameters(seed: int = 0) -> list[nn.Parameter]:
  """Return parameters of these shapes, with gradients."""
  generator = torch.Generator().manual_seed(seed)
  parameters = [
    nn.Parameter(torch.randn(shape, generator=generator) * 0.02)
    for shape in SHAPES
  ]
  for p in parameters:
    p.grad = torch.randn(p.shape, generator=generator) * 1e-3
  return parameters


@dataclasses.dataclass(frozen=True)
class Ratio:
  """A measurement and its reference: medians of interleaved repetitions.

  A ratio of steps to a target is None if the target is not reached.
  """

  ratio: float | None
  ours_ms: float | None
  other_ms: float | None
  against: str
  repeats: int


def compare(
  ours: Callable[[], object],
  others: dict[str, tuple[str, Callable[[], object]]],
  repeats: int = 15,
  warmup: int = 3,
  scale: dict[str, float] | None = None,
) -> dict[str, Ratio]:
  """Time a call and its references in turn; return a ratio for each reference.

  Args:
    ours: one call of the measured code.
    others: name of the ratio to (description of the reference, one call of it).
    repeats: timed rounds; each round times every call once.
    warmup: untimed rounds before them.
    scale: factor on the time of a reference that is a multiple of the call.
  """
  torch.set_num_threads(THREADS)
  calls = {'': ours} | {name: call for name, (_, call) in others.items()}
  times: dict[str, list[float]] = {name: [] for name in calls}
  gc.disable()
  try:
    for round_ in range(warmup + repeats):
      for name, call in calls.items():
        start = time.perf_counter()
        call()
        if round_ >= warmup:
          times[name].append(time.perf_counter() - start)
  finally:
    gc.enable()
  own = statistics.median(times[''])
  results = {}
  for name, (against, _) in others.items():
    other = statistics.median(times[name]) * (scale or {}).get(name, 1.0)
    results[name] = Ratio(own / other, own * 1e3, other * 1e3, against, repeats)
  return results


def check_output(path: pathlib.Path) -> None:
  """Raise InputError unless `report` can write to a path, before minutes pass.

  Its folder need not exist yet.
  """
  if path.is_dir():
    raise InputError(f'Invalid output={str(path)!r}. Must be a file.')
  command_line.check_writable(path.parent)


def report(results: dict[str, Ratio], path: pathlib.Path | None) -> None:
  """Print a table and add the results to the JSON file at `path`, if given."""
  width = max(map(len, results))
  for name, r in results.items():
    times = ''
    if r.ours_ms is not None and r.other_ms is not None:
      times = f'{r.ours_ms:9.3f} ms  {r.other_ms:9.3f} ms  '
    ratio = '   none' if r.ratio is None else f'{r.ratio:7.3f}'
    print(f'{name:{width}}  {ratio}  {times}against {r.against}')
  if path is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {name: dataclasses.asdict(r) for name, r in results.items()}
    logs.write_json(str(path), dict(sorted(known.items())))


def merge(parts: Iterable[dict[str, Ratio]]) -> dict[str, Ratio]:
  """Merge dictionaries of results."""
  return {name: ratio for part in parts for name, ratio in part.items()}
