"""Digests of code: what a run is told apart by, and what is only noted."""

import dataclasses
import json

import pytest

from lab.studies.parts import code, costs, execution


@pytest.mark.parametrize(
  ('name', 'counts'),
  [
    ('weightavg/pytorch/nadamw.py', True),
    ('weightavg/jax/primal.py', True),
    ('lab/workloads/base.py', True),
    ('lab/workloads/stream.py', True),
    ('lab/workloads/jax/base.py', True),
    # These are in the content of their runs.
    ('lab/workloads/click_dlrm.py', False),
    ('lab/workloads/targets.py', False),
  ],
)
def test_a_change_of_the_code_that_trains_changes_its_digest(
  name, counts, monkeypatch
):
  digest = code.of_training.__wrapped__
  # Their content takes seconds to hash, and is another matter.
  monkeypatch.setattr(code, 'of_file', lambda path: 'same')
  before = digest()
  assert digest() == before
  monkeypatch.setattr(
    code,
    'of_file',
    lambda path: 'other' if path.endswith(f'/{name}') else 'same',
  )
  assert (digest() != before) == counts


def _trained_by(path, digest):
  """Let a kept file be one of other code; of an earlier version if None."""
  record = json.loads(path.read_text())
  record.pop(execution.TRAINED_BY)
  if digest is not None:
    record[execution.TRAINED_BY] = digest
  path.write_text(json.dumps(record))


def test_a_kept_run_of_other_code_stays_and_is_counted(
  run, tmp_path, capsys, monkeypatch
):
  runs = [dataclasses.replace(run, seed=seed) for seed in range(3)]
  directory = str(tmp_path)
  assert execution.note_on_code(runs, directory) is None
  results = [execution.execute(run, directory) for run in runs]
  name = runs[0].name
  assert execution.note_on_code(runs, directory) is None
  _trained_by(tmp_path / f'{runs[2].name}.json', None)
  assert execution.note_on_code(runs, directory) is None
  monkeypatch.setattr(code, 'of_training', lambda: 'changed')
  # The names, and so what is kept, do not depend on it.
  assert dataclasses.replace(runs[0]).name == name
  assert execution.run_all(runs, directory, jobs=1) == results
  execution.warn_of_other_code(runs, directory)
  text = (
    f'2 of the 3 finished runs in {directory}, such as {name}, were trained by '
    'other code of weightavg or lab.workloads than this'
  )
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'Warning: {text}')
  assert text in costs.describe_missing(runs, directory, 1).splitlines()[-1]
  _trained_by(tmp_path / f'{name}.json', 'changed')
  note = execution.note_on_code(runs, directory)
  assert note.startswith('1 of the 3')
