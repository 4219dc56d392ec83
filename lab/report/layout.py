"""Finds trials in folders that have AlgoPerf's layout.

`<folder>/<submission>/study_<s>/<workload>_<framework>/trial_<k>/`. A folder
may also be a single submission, or hold experiments without studies, which
count as study_0. `--append_timestamp` of the benchmark's runner lengthens the
name of a study.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator

_WORKLOAD = re.compile(r'(?P<workload>\w+)_(?P<framework>jax|pytorch)')
_TRIAL = re.compile(r'trial_(\d+)')
_STUDY = re.compile(r'study[_-]?\d+(-\d{4}(-\d{2}){5})?')


@dataclasses.dataclass(frozen=True)
class Place:
  """Directory of a trial and the names that its path holds."""

  path: pathlib.Path
  submission: str
  study: str
  workload: str
  framework: str
  trial: int

  @property
  def root(self) -> pathlib.Path:
    """Folder of the submission."""
    above = self.path.parent.parent
    return above.parent if _readable(above.name) == self.study else above

  def __str__(self) -> str:
    return (
      f'{self.submission}/{self.study}/{self.workload}_{self.framework}/'
      f'trial_{self.trial}'
    )


def find(folder: pathlib.Path) -> list[Place]:
  """Find the trials below a folder, in the order of their paths."""
  places = []
  for path, match, trials in _workloads(folder):
    submission, study = _owner(folder, path.parent)
    places += [
      Place(
        path / trial[0],
        submission,
        study,
        match['workload'],
        match['framework'],
        int(trial[1]),
      )
      for trial in trials
    ]
  return sorted(places, key=lambda place: (str(place.path.parent), place.trial))


def without_trials(folder: pathlib.Path) -> list[pathlib.Path]:
  """Find the folders of workloads that hold no trial."""
  return sorted(path for path, _, trials in _workloads(folder) if not trials)


def _workloads(
  folder: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, re.Match[str], list[re.Match[str]]]]:
  """Yield the folder of each workload, the parts of its name, its trials."""
  seen: set[str] = set()
  for parent, names, _ in os.walk(folder, followlinks=True):
    names.sort()
    # A link to a folder above would be followed without end.
    if (real := os.path.realpath(parent)) in seen:
      names.clear()
      continue
    seen.add(real)
    match = _WORKLOAD.fullmatch(os.path.basename(parent))
    trials = [m for name in names if (m := _TRIAL.fullmatch(name))]
    # A submission's own name may end in a framework's, but holds folders.
    if match and (trials or not names):
      yield pathlib.Path(parent), match, trials
      names.clear()


def _readable(name: str) -> str:
  r"""Return a folder's name with bytes that are no UTF-8 written as \xff."""
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def _owner(folder: pathlib.Path, above: pathlib.Path) -> tuple[str, str]:
  """Submission and study to which a folder of workloads belongs."""
  parts = (folder.resolve().name, *above.relative_to(folder).parts)
  names = [_readable(part) for part in parts]
  if len(names) > 1 and _STUDY.fullmatch(names[-1]):
    return names[-2], names[-1]
  # As the benchmark's scoring: <submission>/<any name> is a study.
  if len(names) > 2:
    return names[-2], names[-1]
  return names[-1], 'study_0'
