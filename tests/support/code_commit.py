"""Commit of the code, by which long suites know the outcomes they may keep."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def commit(*paths: str) -> str:
  """Return the last commit that changed the code.

  Args:
    *paths: Files and folders of the code; all files but results/ if none.

  Returns:
    Twelve hexadecimal digits; with `-dirty` if the code differs from it.
  """
  code = list(paths) or ['.', ':!results']

  def git(*words):
    return subprocess.run(
      ['git', *words, '--', *code], cwd=ROOT, capture_output=True
    )

  found = git('log', '-1', '--format=%h', '--abbrev=12').stdout.decode().strip()
  is_clean = git('diff', '--quiet', 'HEAD').returncode == 0
  return found if is_clean else f'{found}-dirty'
