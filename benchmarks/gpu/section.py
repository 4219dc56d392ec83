"""Run one section in this process: `python -m benchmarks.gpu.section NAME`."""

import argparse
import importlib
import json
import sys

import torch

from benchmarks.gpu import sections
from benchmarks.gpu.setting import Rows, Setting, SkippedError


def rows_of(name: str, setting: Setting) -> Rows:
  """The rows of a section, as it measures them."""
  if name.startswith('train_'):
    from benchmarks.gpu import training

    return training.measure(setting, name.removeprefix('train_'))
  module = importlib.import_module(f'benchmarks.gpu.{name}')
  return module.measure(setting)


def main() -> None:
  """Append each row to the file as a JSON line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('name', choices=sections.LIMITS)
  parser.add_argument('device', choices=('cuda', 'cpu'))
  parser.add_argument('--smoke', action='store_true')
  parser.add_argument('--rows', required=True)
  arguments = parser.parse_args()
  setting = Setting(torch.device(arguments.device), arguments.smoke)
  try:
    for row in rows_of(arguments.name, setting):
      with open(arguments.rows, 'a', encoding='utf-8') as file:
        file.write(json.dumps(row) + '\n')
  except SkippedError as reason:
    print(reason)
    sys.exit(sections.SKIPPED_CODE)


if __name__ == '__main__':
  main()
