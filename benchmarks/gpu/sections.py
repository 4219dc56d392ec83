"""All sections, and how each runs: a process and a time limit of its own."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu import processes

# Of a section's output, what is kept when it fails.
_KEPT_CHARACTERS = 1500
# Less time than this starts no section.
_SHORTEST_SECONDS = 5.0
SKIPPED_CODE = 77

# Seconds that each may take; the most important ones first, since those at the
# end find no time left on a slow machine.
LIMITS = {
  'environment': 40,
  'cuda_tests': 90,
  'averages': 60,
  'optimizers': 90,
  'shampoo': 70,
  'cuda_graphs': 80,
  'placements': 90,
  'collectives': 110,
  'train_imagenet_vit': 140,
  'train_finewebedu_lm': 150,
  'train_wmt': 80,
  'train_imagenet_resnet': 60,
}


@dataclasses.dataclass(frozen=True)
class Section:
  """A command that adds rows to the file whose path it is given last.

  Args:
    name: key in the results.
    limit: seconds after which it is ended.
    command: arguments of the process.
  """

  name: str
  limit: float
  command: Sequence[str]


def section(name: str, device: str, smoke: bool) -> Section:
  """The section of this package called `name`."""
  command = [sys.executable, '-m', 'benchmarks.gpu.section', name, device]
  command += ['--smoke'] if smoke else []
  return Section(name, LIMITS[name], [*command, '--rows'])


def run(
  section: Section, seconds_left: float, changed: Callable[[dict], None]
) -> dict[str, Any]:
  """Run a section and return its entry in the results; nothing is raised.

  Args:
    section: what to run.
    seconds_left: of the whole call.
    changed: called with the entry so far whenever there are new rows.
  """
  limit = min(section.limit, seconds_left)
  if limit < _SHORTEST_SECONDS:
    return _entry('not run', 0.0, 'No time was left.', {})
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'rows.jsonl')
    with open(pathlib.Path(folder, 'output'), 'w+', encoding='utf-8') as output:
      start = time.monotonic()
      process = subprocess.Popen(
        [*section.command, str(path)],
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
      rows: dict[str, Any] = {}
      try:
        while process.poll() is None and time.monotonic() - start < limit:
          time.sleep(0.1)
          if len(read_rows(path)) > len(rows):
            rows = read_rows(path)
            seconds = time.monotonic() - start
            changed(_entry('running', seconds, '', rows))
        ended = process.poll()
      finally:
        # A section starts processes of its own.
        processes.end(process.pid)
        process.wait()
      seconds = time.monotonic() - start
      output.seek(0)
      text = output.read()
    rows = read_rows(path)
  if ended == 0:
    return _entry('complete', seconds, '', rows)
  if ended == SKIPPED_CODE:
    return _entry('skipped', seconds, text.strip().splitlines()[-1], rows)
  kept = text[-_KEPT_CHARACTERS:]
  if ended is None:
    return _entry('out of time', seconds, f'Ended after {limit:.0f} s.', rows)
  return _entry('failed', seconds, kept, rows)


def _entry(status: str, seconds: float, message: str, rows: dict) -> dict:
  return {
    'status': status,
    'seconds': round(seconds, 1),
    'message': message,
    'rows': rows,
  }


def read_rows(path: pathlib.Path) -> dict[str, Any]:
  """Rows of a file to which a process is adding lines; a torn one is left."""
  rows = {}
  lines = path.read_text().split('\n')[:-1] if path.exists() else []
  for line in lines:
    name, values = json.loads(line)
    rows[name] = values
  return rows
