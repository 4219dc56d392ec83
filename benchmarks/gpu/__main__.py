"""Measure everything that a GPU can show, in at most nine minutes.

`python -m benchmarks.gpu` writes results/gpu/gpu.json and gpu.md. Sections
named on the command line alone are measured again; the others stay.
"""

import argparse
import functools
import importlib.util
import pathlib
import sys
import time

from benchmarks.gpu import sections, table

# Importing torch takes part of the nine minutes on a fresh machine.
_START = time.monotonic()
OUTPUT = pathlib.Path('results/gpu')


def main() -> None:
  """Run the sections one after the other."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*', metavar='section')
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  parser.add_argument('--seconds', type=float, default=530.0)
  # Tests of this package: tiny sizes on a CPU.
  parser.add_argument('--smoke', action='store_true', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  unknown = sorted({*arguments.names} - {*sections.LIMITS})
  if unknown:
    sys.exit(
      f'Invalid section={unknown[0]!r}. Must be one of '
      f'{", ".join(sections.LIMITS)}.'
    )
  reason = _unfit(needs_gpu=not arguments.smoke)
  if reason is not None:
    sys.exit(f'{reason} python -m benchmarks.gpu needs one.')
  device = 'cpu' if arguments.smoke else 'cuda'
  # The machine is looked at in any case: it may be another one than before.
  names = dict.fromkeys(('environment', *(arguments.names or sections.LIMITS)))
  everything = [
    sections.section(name, device, arguments.smoke) for name in names
  ]
  deadline = _START + arguments.seconds
  measure(everything, deadline, arguments.output)
  print(f'Wrote {arguments.output / "gpu.json"} and gpu.md.')


def measure(
  everything: list[sections.Section], deadline: float, output: pathlib.Path
) -> dict:
  """Run sections until the deadline; results are written as they come.

  Args:
    everything: what to run, in this order.
    deadline: of time.monotonic(), for all of them.
    output: folder of gpu.json; the sections that it has already are kept.
  """
  from lab.core import atomic_files, logs

  output.mkdir(parents=True, exist_ok=True)
  path = output / 'gpu.json'
  results = logs.read_json(str(path)) or {}

  def write(name: str, entry: dict) -> None:
    machine = table.machine_of({**results, name: entry})
    results[name] = entry if machine is None else entry | {'machine': machine}
    logs.write_json(str(path), results)
    page = table.page(results)
    atomic_files.replace(str(output / 'gpu.md'), lambda file: file.write(page))

  for section in everything:
    entry = sections.run(
      section,
      deadline - time.monotonic(),
      functools.partial(write, section.name),
    )
    write(section.name, entry)
    note = entry['message'].strip().splitlines()
    print(
      f'{section.name:24} {entry["status"]:12} {entry["seconds"]:6.1f} s  '
      f'{len(entry["rows"])} rows  {note[-1] if note else ""}',
      flush=True,
    )
  return results


def _unfit(needs_gpu: bool) -> str | None:
  """Return what is missing here, in a sentence, or None."""
  for package in ('torch', 'numpy', 'absl'):
    if importlib.util.find_spec(package) is None:
      return f'{sys.executable} has no package {package}.'
  if needs_gpu:
    try:
      import torch
    # A library of CUDA's may be missing.
    except (ImportError, OSError) as error:
      return f'torch cannot be imported ({str(error).splitlines()[0]}).'
    if not torch.cuda.is_available():
      return 'No CUDA device was found.'
  return None


if __name__ == '__main__':
  main()
