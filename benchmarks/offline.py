"""Measure time and memory of an average of saved checkpoints."""

import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

from benchmarks.measure import (
  THREADS,
  Ratio,
  compare,
  merge,
  transformer_parameters,
)
from lab.offline import averaging, plans, series, writers
from weightavg.schemes import Lawa

FILES = 50
REPEATS = 5


def _write(
  folder: str,
  files: int,
  tensors: list[torch.Tensor],
  ending: str = 'safetensors',
) -> int:
  """Write checkpoints of steps 1 to `files`; return the bytes of one model."""
  for step in range(1, files + 1):
    named = [(f't{i}', t + step) for i, t in enumerate(tensors)]
    path = f'{folder}/step_{step}.{ending}'
    if ending == 'pt':
      torch.save({'model_params': dict(named)}, path)
    else:
      writers.save(path, named, {})
  return sum(t.numel() * t.element_size() for t in tensors)


def _average(folder: str, files: int, hashes: bool, name: str) -> None:
  found = series.find([f'{folder}/step_*.safetensors'])
  plan = plans.plan(found, Lawa(files), files - 1, 1)
  path = f'{folder}/{name}.safetensors'
  ((_, error),) = averaging.write_averages(found, [(plan, path)], hashes=hashes)
  if error is not None:
    raise error


def _read(folder: str, files: int) -> None:
  buffer = bytearray(1 << 22)
  for step in range(1, files + 1):
    with open(f'{folder}/step_{step}.safetensors', 'rb', buffering=0) as file:
      while file.readinto(buffer):
        pass


def _naive(folder: str, files: int) -> None:
  states = [
    load_file(f'{folder}/step_{step}.safetensors')
    for step in range(1, files + 1)
  ]
  mean = {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]}
  writers.save(f'{folder}/naive.safetensors', mean.items(), {})


def _times() -> dict[str, Ratio]:
  tensors = [p.detach() for p in transformer_parameters()[1:4]]
  with tempfile.TemporaryDirectory() as folder:
    _write(folder, FILES, tensors)
    reading = (
      'plain sequential reads of the same 50 files, in the page cache',
      lambda: _read(folder, FILES),
    )
    naive = (
      'loading all 50 state dicts, torch.stack and mean, and writing it',
      lambda: _naive(folder, FILES),
    )
    return merge(
      [
        compare(
          lambda: _average(folder, FILES, False, 'plain'),
          {
            # As with --no_hashes; the line below has them.
            'offline_average/read_bytes': reading,
            'offline_average_50/naive_load_all': naive,
          },
          REPEATS,
          1,
        ),
        compare(
          lambda: _average(folder, FILES, True, 'hashed'),
          {'offline_average_hashed/read_bytes': reading},
          REPEATS,
          1,
        ),
      ]
    )


def _peak(files: int, outputs: int, ending: str = 'safetensors') -> Ratio:
  """Measure the growth of a new process's peak resident memory, in models."""
  tensors = [p.detach() for p in transformer_parameters()]
  with tempfile.TemporaryDirectory() as folder:
    model = _write(folder, files, tensors, ending)
    code = 'import sys, benchmarks.offline as b; b.peak_child(*sys.argv[1:])'
    command = [sys.executable, '-c', code, folder]
    done = subprocess.run(
      [*command, str(outputs), ending],
      check=True,
      capture_output=True,
      text=True,
      cwd=pathlib.Path(__file__).parent.parent,
    )
  return Ratio(
    int(done.stdout) / model,
    None,
    None,
    f"the model's bytes; {files} .{ending} files of 93 MB, {outputs} "
    'output(s), resident memory with mapped files',
    1,
  )


def peak_child(folder: str, outputs: str, ending: str) -> None:
  """Print the growth of this process's peak memory in bytes."""
  torch.set_num_threads(THREADS)
  found = series.find([f'{folder}/step_*.{ending}'])
  # Run all code once, so that the libraries' memory is not counted.
  os.mkdir(f'{folder}/small')
  _write(f'{folder}/small', 1, [torch.zeros(3)], ending)
  small = series.find([f'{folder}/small/step_1.{ending}'])
  averaging.write_averages(
    small, [(plans.plan(small, Lawa(1), 0, 1), f'{folder}/w.safetensors')]
  )
  last = len(found.steps) - 1
  jobs = [
    (plans.plan(found, Lawa(last - i), last, 1), f'{folder}/a{i}.{ending}')
    for i in range(int(outputs))
  ]
  # Reset the peak, which libraries or the parent process have set.
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  before = _kilobytes('VmRSS')
  results = averaging.write_averages(found, jobs)
  assert all(error is None for _, error in results), results
  print((_kilobytes('VmHWM') - before) * 1024)


def _kilobytes(key: str) -> int:
  text = pathlib.Path('/proc/self/status').read_text()
  return int(text.split(f'{key}:')[1].split()[0])


def measure() -> dict[str, Ratio]:
  return _times() | {
    'offline_peak_bytes/model_bytes': _peak(files=12, outputs=1),
    'offline_peak_bytes_5_outputs/model_bytes': _peak(files=12, outputs=5),
    'offline_peak_bytes_pt/model_bytes': _peak(12, outputs=1, ending='pt'),
  }
