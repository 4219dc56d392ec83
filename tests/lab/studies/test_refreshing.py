"""The share of refreshing is that of the billed sections."""

import json

import pytest

from lab.core.errors import InputError
from lab.studies import refreshing
from lab.workloads import glyph_resnet


def test_the_share_is_of_all_billed_time():
  durations = {
    'Data selection': 4 * [0.5],
    # Of which the last has a refresh inside.
    'Update parameters': [1.0, 1.0, 1.0, 3.0],
    'Prepare for eval': [1.0],
    'Evaluation': [50.0],
    'Running statistics': [2.0],
  }
  row = refreshing.row_of('w', durations)
  assert row['step_seconds'] == 1.0
  assert row['refresh_seconds'] == 2.0
  # 2 of 2 + 6 + 1.
  assert row['share_of_billed'] == pytest.approx(2 / 9)
  text = refreshing.sentence([row])
  assert 'takes 2.00 of the time of a step (medians of 1 and 4)' in text
  assert '22.2 % of the billed time' in text


def test_a_run_refreshes_every_tenth_step(shrink, tmp_path, capsys):
  shrink(glyph_resnet.Workload, size=8)
  folder = tmp_path / 'new'
  refreshing.main(['--steps=20', f'--output_dir={folder}'])
  (row,) = json.loads((folder / 'refreshing.json').read_text())
  assert (row['steps'], row['refreshes']) == (20, 2)
  assert 0.0 < row['share_of_billed'] < 1.0
  assert capsys.readouterr().out.startswith('On `glyph_resnet` a refresh takes')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workload=x'], "Invalid workload='x'. Must be among click_dlrm"),
    (['--steps=5'], 'Invalid steps=5. Must be in'),
    (['--seed=-3'], r'Invalid seed=-3. Must be in \[0, inf\).'),
    (['--workload=click_dlrm'], 'Its model has no running statistics'),
  ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
  arguments, message, tmp_path
):
  folder = tmp_path / 'out'
  with pytest.raises(InputError, match=message):
    refreshing.main([*arguments, f'--output_dir={folder}'])
  assert not folder.exists()
