"""Targets of the workloads, as `lab.studies calibrate` has written them."""

import functools
import json
import logging
import pathlib
from typing import Any

_FOLDER = pathlib.Path(__file__).parent


def path(name: str) -> pathlib.Path:
  """Return the path of a workload's calibration."""
  return _FOLDER / f'{name}.json'


def read(workload: Any) -> dict[str, Any]:
  """Calibration of a workload; warns once where its data have changed.

  Raises:
    ValueError: there is none yet, or it is not whole.
  """
  calibration = _load(path(workload.name))
  if calibration['data_fingerprint'] != workload.data_fingerprint():
    _warn_once(workload.name, calibration['versions']['python'])
  return calibration


@functools.cache
def _load(file: pathlib.Path) -> dict[str, Any]:
  hint = f'Run `python -m lab.studies calibrate --workloads={file.stem}`.'
  if not file.exists():
    raise ValueError(f'No targets for {file.stem}: {file} is missing. {hint}')
  try:
    calibration = json.loads(file.read_text())
    for key in ('validation_target', 'test_target'):
      calibration[key] = float(calibration[key])
    calibration['data_fingerprint'], calibration['versions']['python']
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{file} holds no targets ({error!r}). {hint}') from error
  return calibration


@functools.cache
def _warn_once(name: str, python: str) -> None:
  logging.getLogger(__name__).warning(
    'The data of %s differ from those that its targets were set on '
    '(Python %s): steps to target are not comparable with published ones.',
    name,
    python,
  )
