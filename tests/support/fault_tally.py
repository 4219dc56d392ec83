"""Counts of what the long form of tests/faults has tried, in results/faults.

`progress.json` has an entry for each finished test at one commit, so that an
interrupted long form goes on. `faults.json` is their sum, with that of the
mutation tests in `mutants.json`.
"""

import collections
import json
import pathlib

import code_commit
import filelock

from lab.core import logs

FOLDER = code_commit.ROOT / 'results' / 'faults'
TOTALS = ('kills', 'corruptions', 'inputs_fuzzed')


def commit() -> str:
  """Return the last commit that changed what the tests run."""
  return code_commit.commit('tests/faults')


def _read(path: pathlib.Path) -> dict:
  return json.loads(path.read_text()) if path.exists() else {}


class Tally:
  """The counts of one test.

  Args:
    name: Of the test.
    folder: Where the files are; None keeps nothing.
  """

  def __init__(self, name: str, folder: pathlib.Path | None) -> None:
    self.name, self.folder = name, folder
    self.counts: collections.Counter[str] = collections.Counter()
    self.lost = 0

  @property
  def is_done(self) -> bool:
    """True if the test has finished at this commit."""
    if self.folder is None:
      return False
    known = _read(self.folder / 'progress.json')
    return known.get('commit') == commit() and self.name in known['tests']

  def add(self, total: str, category: str, count: int = 1) -> None:
    """Count what has been tried: a category of kills, corruptions, ..."""
    self.counts[f'{total}/{category}'] += count

  def check(self, losses: list[str]) -> None:
    """Fail if anything was lost, and count it."""
    self.lost += bool(losses)
    assert not losses, losses

  def write(self) -> None:
    """Add the test to the files."""
    if self.folder is None or not self.counts:
      return
    self.folder.mkdir(parents=True, exist_ok=True)
    path = self.folder / 'progress.json'
    with filelock.FileLock(self.folder / '.lock'):
      known, now = _read(path), commit()
      if known.get('commit') != now:
        known = {'commit': now, 'tests': {}}
      entry = {'counts': dict(self.counts), 'lost': self.lost}
      known['tests'][self.name] = entry
      # Complete or not at all: other processes read it without the lock.
      logs.write_json(str(path), known)
      write_totals(self.folder)


def write_totals(folder: pathlib.Path = FOLDER) -> None:
  """Write faults.json from progress.json and mutants.json."""
  progress = _read(folder / 'progress.json')
  mutants = _read(folder / 'mutants.json')
  counts: collections.Counter[str] = collections.Counter()
  for entry in progress['tests'].values():
    counts.update(entry['counts'])
  content = {'commit': progress['commit']}
  content |= dict.fromkeys(TOTALS, 0)
  by_category: dict[str, dict[str, int]] = {}
  for key, count in sorted(counts.items()):
    total, _, category = key.partition('/')
    content[total] = content.get(total, 0) + count
    by_category.setdefault(total, {})[category] = count
  content |= {
    'mutants': mutants.get('mutants', 0),
    'mutants_killed': mutants.get('mutants_killed', 0),
    'lost': sum(e['lost'] for e in progress['tests'].values()),
    'by_category': by_category,
  }
  logs.write_json(str(folder / 'faults.json'), content)
