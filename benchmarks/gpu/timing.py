"""Times and memory on a device; on a CPU the same by its own clock."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Calls = Mapping[str, Callable[[], object]]


def synchronize(device: torch.device) -> None:
  """Wait for all work that the device was given."""
  if device.type == 'cuda':
    torch.cuda.synchronize(device)


def milliseconds(
  call: Callable[[], object], device: torch.device, calls: int = 1
) -> float:
  """Time of one call, from `calls` of them between two CUDA events."""
  synchronize(device)
  if device.type != 'cuda':
    start = time.perf_counter()
    for _ in range(calls):
      call()
    return (time.perf_counter() - start) * 1e3 / calls
  begin = torch.cuda.Event(enable_timing=True)
  end = torch.cuda.Event(enable_timing=True)
  begin.record()
  for _ in range(calls):
    call()
  end.record()
  synchronize(device)
  return begin.elapsed_time(end) / calls


def interleaved(
  named: Calls,
  device: torch.device,
  rounds: int = 9,
  calls: int = 1,
  warmup: int = 1,
) -> dict[str, float]:
  """Median milliseconds of one call of each, all measured in turn.

  Args:
    named: what is timed.
    device: whose work is waited for.
    rounds: timed rounds; each times everything once, every other one backwards.
    calls: calls between two events. The host may run ahead within them.
    warmup: rounds before, not timed.
  """
  times: dict[str, list[float]] = {name: [] for name in named}
  gc.collect()
  gc.disable()
  try:
    for round_ in range(warmup + rounds):
      order = list(named.items())
      for name, call in order if round_ % 2 else reversed(order):
        taken = milliseconds(call, device, calls)
        if round_ >= warmup:
          times[name].append(taken)
  finally:
    gc.enable()
  return {name: statistics.median(taken) for name, taken in times.items()}


def free(device: torch.device) -> None:
  """Give unused memory back and forget the peak."""
  gc.collect()
  if device.type == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def peak_gigabytes(device: torch.device) -> float | None:
  """Largest memory of all tensors since `free`, 1e9 bytes; None on a CPU."""
  if device.type != 'cuda':
    return None
  return torch.cuda.max_memory_allocated(device) / 1e9
