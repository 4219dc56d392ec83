"""Try mutants of the core and write the outcome to results/faults/mutants.json.

mutmut changes the modules of setup.cfg, one expression at a time, in the folder
mutants/. `mutant_trials` runs the tests of setup.cfg there. A mutant that
survives has to be killed by a new test, or justified by its name in
results/faults/justified.json.
"""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

import code_commit
import fault_tally
import mutant_trials
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.trampoline import set_mutant_under_test

from lab.core import logs

_FOLDER = code_commit.ROOT / 'mutants'


def generate() -> dict[str, pathlib.Path]:
  """Write the mutants; return the file of each by its name."""
  _FOLDER.mkdir(exist_ok=True)
  set_mutant_under_test('mutant_generation')
  with contextlib.redirect_stdout(io.StringIO()):
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.create_mutants(max_children=1)
  found, _ = mutmut.collect_source_file_mutation_data(mutant_names=())
  return {mutant: data.path for data, mutant, _ in found}


def try_all(mutants: list[str]) -> dict[str, str | None]:
  """Return the test that kills each mutant, None for a survivor."""
  names = _FOLDER / 'names.txt'
  names.write_text('\n'.join(mutants))
  settings = config()
  command = [
    *(sys.executable, '-m', 'pytest', '-p', 'mutant_trials', '--tb=no', '-q'),
    *(f'--mutants={names}', f'--basetemp={_FOLDER / "tmp"}'),
    *settings.pytest_add_cli_args,
    *settings.pytest_add_cli_args_test_selection,
  ]
  environment = {
    'OMP_NUM_THREADS': '1',
    'PYTHONPATH': str(_FOLDER / 'tests' / 'support'),
  }
  subprocess.run(command, cwd=_FOLDER, env=os.environ | environment, check=True)
  lines = mutant_trials.read_lines(_FOLDER / mutant_trials.OUTCOMES)
  outcomes = {line['mutant']: line['killed_by'] for line in lines}
  return {mutant: outcomes[mutant] for mutant in mutants}


def change(mutant: str, path: pathlib.Path) -> list[str]:
  """Return the lines that a mutant removes and adds."""
  _, _, *diff = get_diff_for_mutant(mutant, path=path).splitlines()
  return [
    f'{line[0]} {line[1:].strip()}' for line in diff if line[:1] in ('-', '+')
  ]


def main() -> int:
  """Write counts and survivors; 1 if these are not the justified mutants."""
  os.chdir(code_commit.ROOT)
  files = generate()
  outcomes = try_all(list(files))
  survived = {
    mutant: change(mutant, files[mutant])
    for mutant, killed_by in sorted(outcomes.items())
    if killed_by is None
  }
  modules: dict[str, dict[str, int]] = {}
  for mutant, killed_by in outcomes.items():
    counts = modules.setdefault(
      str(files[mutant]), {'mutants': 0, 'mutants_killed': 0}
    )
    counts['mutants'] += 1
    counts['mutants_killed'] += killed_by is not None
  totals = {
    'mutants': len(outcomes),
    'mutants_killed': len(outcomes) - len(survived),
  }
  content = {'commit': fault_tally.commit(), **totals, 'modules': modules}
  folder = fault_tally.FOLDER
  logs.write_json(
    str(folder / 'mutants.json'), content | {'survived': survived}
  )
  # The long form counts the rest.
  path = folder / 'faults.json'
  logs.write_json(str(path), json.loads(path.read_text()) | totals)
  print(f'{len(outcomes)} mutants, {totals["mutants_killed"]} killed')
  justified = json.loads((folder / 'justified.json').read_text())
  for mutant in sorted(survived.keys() - justified):
    print('survived, not justified:', mutant, *survived[mutant], sep='\n  ')
  for mutant in sorted(justified.keys() - survived):
    print('justified, but no survivor:', mutant)
  return int(survived.keys() != justified.keys())


if __name__ == '__main__':
  sys.exit(main())
