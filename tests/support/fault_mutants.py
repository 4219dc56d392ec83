"""Write the outcome of `mutmut run` to results/faults/mutants.json.

A mutant that survives has to be killed by a test, or justified by its name in
results/faults/justified.json.
"""

import collections
import json
import pathlib
import sys

import code_commit
import fault_tally

# Exit statuses of the tests, as mutmut keeps them; others are not decided. A
# mutant that no test reaches (33) has survived.
_KILLED, _SURVIVED, _TIMEOUT = (1, 3), (0, 33), (36, 24, 152, -24, 255)


def outcomes(folder: pathlib.Path) -> dict[str, str]:
  """Outcome of each mutant that has been tried, by name."""
  found = {}
  for path in sorted(folder.rglob('*.meta')):
    statuses = json.loads(path.read_text())['exit_code_by_key']
    for name, status in statuses.items():
      if status in _SURVIVED:
        found[name] = 'survived'
      elif status in _KILLED or status in _TIMEOUT:
        found[name] = 'killed'
  return found


def main() -> int:
  """Write the counts and the survivors; 1 if one is not justified."""
  found = outcomes(code_commit.ROOT / 'mutants')
  counts = collections.Counter(found.values())
  path = fault_tally.FOLDER / 'justified.json'
  justified = json.loads(path.read_text()) if path.exists() else {}
  survived = sorted(name for name, how in found.items() if how == 'survived')
  unexplained = [name for name in survived if name not in justified]
  content = {
    'commit': fault_tally.commit(),
    'mutants': len(found),
    'mutants_killed': counts['killed'],
    'survived': survived,
  }
  fault_tally.FOLDER.mkdir(parents=True, exist_ok=True)
  text = json.dumps(content, indent=2) + '\n'
  (fault_tally.FOLDER / 'mutants.json').write_text(text)
  if (fault_tally.FOLDER / 'progress.json').exists():
    fault_tally.write_totals()
  print(f'{len(found)} mutants, {counts["killed"]} killed')
  for name in unexplained:
    print(f'survived, not justified: {name}')
  return 1 if unexplained else 0


if __name__ == '__main__':
  sys.exit(main())
