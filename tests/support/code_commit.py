"""Commit of the code, by which long suites know the outcomes they may keep."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Studies, docs, results and points of the local workloads aren't read by the
# long suites.
CODE = (
  'lab',
  ':!lab/studies',
  'submissions',
  'tests/support',
  'tuning_search_spaces',
  ':!tuning_search_spaces/local',
  'weightavg',
)


def commit(tests: str) -> str:
  """Return the last commit that changed the code or the tests.

  Args:
    tests: Folder of the suite.

  Returns:
    Twelve hexadecimal digits; with `-dirty` if the code differs from it.
  """

  def git(*words):
    return subprocess.run(
      ['git', *words, '--', *CODE, tests], cwd=ROOT, capture_output=True
    )

  found = git('log', '-1', '--format=%h', '--abbrev=12').stdout.decode().strip()
  is_clean = git('diff', '--quiet', 'HEAD').returncode == 0
  return found if is_clean else f'{found}-dirty'
