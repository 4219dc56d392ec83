"""Rows of bench.json that come from the study of steps."""

import json

from benchmarks import shampoo


def test_steps_to_target_are_medians_over_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert shampoo._steps_to_target() == {}
  row = {'optimizer': 'shampoo', 'workload': 'w', 'candidate': 'ema 1 %'}
  row |= {'budget_steps': 100}
  rows = [
    row
    | {'tuned_for': kind, 'steps_to_target': steps, 'ratio_to_nadamw': ratio}
    for kind, steps, ratio in (
      ('raw', 90, 0.9),
      ('raw', 70, 0.7),
      # NadamW did not arrive: the ratio is at most that to T.
      ('raw', 80, None),
      # The same run once more, and the run of another point.
      ('ema', 90, 0.9),
      ('ema', 10, 0.1),
    )
  ]
  rows += [
    rows[0] | {'optimizer': 'nadamw', 'ratio_to_nadamw': 1.0},
    rows[0] | {'candidate': 'ema 2 %'},
    rows[0]
    | {'workload': 'v', 'candidate': 'raw'}
    | {'steps_to_target': None, 'ratio_to_nadamw': None},
  ]
  path = tmp_path / 'results' / 'study' / 'study.json'
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(rows))
  found = shampoo._steps_to_target()
  assert {name: (r.ratio, r.repeats) for name, r in found.items()} == {
    'steps_to_target/w/shampoo_ema': (0.8, 3),
    'steps_to_target/v/shampoo': (None, 1),
  }
