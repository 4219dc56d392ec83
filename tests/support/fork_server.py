"""The fork server of a test process: its children have torch imported.

Importing torch and its compiler, which the first step of an optimizer does,
takes longer than most of what a child is for.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
# A process has one server, so this is what all of its children need.
_PRELOADED = ['pytest', 'torch._dynamo', 'fault_runs']
_ENVIRONMENT = {
  'PYTHONPATH': os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
  'OMP_NUM_THREADS': '1',
}


def start() -> Any:
  """Start the server unless it runs; the context of its children."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(_PRELOADED)
  before = {name: os.environ.get(name) for name in _ENVIRONMENT}
  os.environ.update(_ENVIRONMENT)
  try:
    multiprocessing.forkserver.ensure_running()
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
  return context
