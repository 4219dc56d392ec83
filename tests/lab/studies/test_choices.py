"""Which average each evaluation of a trial has seen."""

import json
import math

import pytest
from study_runs import lines

from lab.core.choice_columns import NOTHING_FINITE
from lab.core.errors import InputError
from lab.studies import choices
from lab.studies.parts import choice_log


def trial_dir(folder, text, hparams=None):
  (folder / 'measurements.csv').write_text(text)
  if hparams is not None:
    (folder / 'hparams.json').write_text(json.dumps(hparams))
  return str(folder)


TWO = {'averaging_candidates': 'raw, ema  0.1'}
HEADER = 'averaging_choice,global_step,loss,probe_loss/ema 0.1,probe_loss/raw\n'


def test_choices_are_read_from_a_log_of_the_benchmark(tmp_path, capsys):
  text = HEADER + (
    ',5,0.7,,\n1.0,10.0,,0.25,0.5\n0.0,20.0,,0.75,0.5\n'
    # Preempted, and resumed from step 10.
    '-1.0,20.0,,inf,\n0.0,30.0,,,0.5\n0.0,40'
  )
  found = choice_log.read(trial_dir(tmp_path, text, TWO))
  assert [(c.step, c.shown) for c in found] == [
    (10, 'ema 0.1'),
    (20, NOTHING_FINITE),
    (30, 'raw'),
  ]
  assert found[0].losses == {'raw': 0.5, 'ema 0.1': 0.25}
  assert math.isnan(found[1].losses['raw'])
  assert found[1].losses['ema 0.1'] == math.inf
  table = choices.table(found)
  assert lines(table)[0] == ['step', 'shown', 'raw', 'ema 0.1']
  assert lines(table)[1] == ['10', 'ema 0.1', '0.5', '0.25']
  choices.main([str(tmp_path), '--output', str(tmp_path / 'new' / 'c.png')])
  assert capsys.readouterr().out.startswith(table)
  assert (tmp_path / 'new' / 'c.png').stat().st_size > 5_000


@pytest.mark.parametrize(
  ('text', 'hparams', 'message'),
  [
    ('global_step,loss\n5,0.5\n', None, 'chose among no averages'),
    (HEADER, TWO, 'chose among no averages'),
    (HEADER + '0,5,,1,1\n', None, 'has the candidates ema 0.1, raw, hparams'),
    (HEADER + '2,5,,1,1\n', TWO, 'choice 2'),
  ],
)
def test_a_run_without_choices_ends_in_one_line(
  text, hparams, message, tmp_path
):
  with pytest.raises(InputError, match=message):
    choices.main([trial_dir(tmp_path, text, hparams)])


def test_bad_paths_end_in_one_line(tmp_path):
  with pytest.raises(InputError, match='No such directory'):
    choices.main([str(tmp_path / 'none')])
  with pytest.raises(InputError, match='has no measurements'):
    choices.main([str(tmp_path)])
  good = trial_dir(tmp_path, HEADER + '0,5,,1,1\n', TWO)
  with pytest.raises(InputError, match=r'output=.*Must end in \.png'):
    choices.main([good, '--output', str(tmp_path / 'c.pdf')])
