"""Measure everything that a GPU can show, in at most nine minutes.

`python -m benchmarks.gpu` writes results/gpu/gpu.json and gpu.md. Sections
named on the command line alone are measured again; the others stay.
"""

import argparse
import functools
import pathlib
import sys
import time

from benchmarks.gpu import sections, table
from lab.core import logs

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
  if not arguments.smoke and not _has_gpu():
    sys.exit('No CUDA device was found. python -m benchmarks.gpu needs one.')
  device = 'cpu' if arguments.smoke else 'cuda'
  everything = [
    sections.section(name, device, arguments.smoke)
    for name in arguments.names or sections.LIMITS
  ]
  deadline = time.monotonic() + arguments.seconds
  results = measure(everything, deadline, arguments.output)
  (arguments.output / 'gpu.md').write_text(table.page(results))
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
  output.mkdir(parents=True, exist_ok=True)
  path = output / 'gpu.json'
  results = logs.read_json(str(path)) or {}

  def write(name: str, entry: dict) -> None:
    results[name] = entry
    logs.write_json(str(path), results)

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


def _has_gpu() -> bool:
  try:
    import torch
  except ImportError:
    sys.exit('No torch was found. python -m benchmarks.gpu needs it.')
  return torch.cuda.is_available()


if __name__ == '__main__':
  main()
