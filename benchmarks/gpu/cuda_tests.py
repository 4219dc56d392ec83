"""Every test that is marked `cuda`."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

from benchmarks.gpu.setting import Rows, Setting
from benchmarks.gpu.trainer import ROOT


def marked() -> list[str]:
  """Files that hold tests marked `cuda`; others need packages of their own."""
  return sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'tests').rglob('test_*.py')
    if 'mark.cuda' in path.read_text(encoding='utf-8')
  )


def measure(setting: Setting) -> Rows:
  """One row for each test and one for all of them."""
  paths = setting.pick(marked(), ['tests/weightavg/test_placement.py'])
  with tempfile.TemporaryDirectory() as folder:
    report = f'{folder}/report.xml'
    finished = subprocess.run(
      [
        *(sys.executable, '-m', 'pytest', '-q', '-m', 'cuda', *paths),
        # Plugins that are there may warn, and the folder may be read-only.
        *('-p', 'no:cacheprovider', '-p', 'no:benchmark'),
        # Other versions of torch and of plugins warn of themselves.
        *('-W', 'default'),
        # Test modules that need a package that is not there hide no others.
        '--continue-on-collection-errors',
        f'--junitxml={report}',
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      check=False,
    )
    print(finished.stdout[-4000:], file=sys.stderr)
    try:
      cases = list(ElementTree.parse(report).iter('testcase'))
    except (OSError, ElementTree.ParseError):
      raise RuntimeError(
        f'pytest ended with {finished.returncode} and no report.'
      ) from None
  outcomes = dict.fromkeys(('passed', 'failed', 'skipped', 'not importable'), 0)
  for case in cases:
    kinds = {child.tag for child in case}
    failed = bool(kinds & {'failure', 'error'})
    outcome = 'failed' if failed else 'passed'
    if 'skipped' in kinds:
      outcome = 'skipped'
    error = case.find('error')
    if error is not None and error.get('message') == 'collection failure':
      # A module that needs a package which this machine lacks.
      outcome = 'not importable'
    outcomes[outcome] += 1
    yield case.get('name', ''), {'outcome': outcome}
  yield 'all', outcomes
