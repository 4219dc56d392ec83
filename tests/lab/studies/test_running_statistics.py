"""Ways to running statistics at x: what is trained, measured and shown."""

import argparse
import copy

import pytest
import torch
from study_runs import lines, result

from lab.offline import batch_norm
from lab.run import from_python
from lab.studies import running_statistics as study
from lab.studies.parts import recomputed
from lab.studies.parts.methods import NADAMW_AT_AVERAGE
from lab.studies.parts.shown import SHOWN
from lab.workloads import build_workload, glyph_resnet


class _Looks:
  """Keeps what each evaluation measures, and what it leaves behind."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.measured, self.left_alone = [], []

  def instead_of_evaluation(self, run, rng):
    model, measure = run.state.model_params, run.measure
    before = [t.clone() for t in model.state_dict().values()]

    def looking(split, rng):
      self.measured.append(copy.deepcopy(model.state_dict()))
      return measure(split, rng)

    run.measure = looking
    done = super().instead_of_evaluation(run, rng)
    run.measure = measure
    same = map(torch.equal, before, model.state_dict().values())
    self.left_alone.append(all(same))
    return done


def looking(kind):
  return type('Looking', (_Looks, kind), {})


def trained(run, folder):
  follower = looking(run.follower)(evaluated_from=0.0)
  state = from_python.train(
    build_workload('glyph_resnet'),
    run.submission_path,
    dict(run.point),
    0,
    str(folder),
    [follower],
    40,
  )
  return follower, state


@pytest.mark.slow
@pytest.mark.parametrize('method', NADAMW_AT_AVERAGE)
def test_training_is_the_same_and_recomputed_statistics_are_put_back(
  method, shrink, tmp_path
):
  shrink(glyph_resnet.Workload, steps=40, eval_every_steps=20, size=64)
  options = argparse.Namespace(
    workloads=['glyph_resnet'], seeds=[0], methods=[method]
  )
  runs = study.trainings(options)
  assert [run.columns['statistics'] for run in runs] == [*study.WAYS]
  assert len({run.name for run in runs}) == len(runs)
  found = {}
  for run in runs:
    way = run.columns['statistics']
    found[way], state = trained(run, tmp_path / way.replace(' ', '_'))
    assert len(found[way].measured) == 2
    assert all(found[way].left_alone)
  model = state.model_params
  names = [name for name, _ in model.named_parameters()]
  x = found['current'].measured
  for way, follower in found.items():
    for one, other in zip(follower.measured, x, strict=True):
      assert all(torch.equal(one[name], other[name]) for name in names), way
  # Statistics are those of x, on the follower's own stream of batches.
  workload = build_workload('glyph_resnet')
  queue = workload._build_input_queue(
    (0, recomputed._SALT), 'train', '', workload.batch_size
  )
  for at_x, measured in zip(x, found[study.RECOMPUTED].measured, strict=True):
    model.load_state_dict(at_x)
    batch_norm.recompute(workload, model, None, queue, study.BATCHES, None)
    for name, buffer in model.named_buffers():
      if 'running' in name:
        assert torch.equal(buffer, measured[name]), name
        assert not torch.equal(buffer, at_x[name])
  # Each way has statistics of its own.
  norms = [name for name, _ in model.named_buffers() if 'running' in name]
  seen = {
    tuple(float(f.measured[-1][name].sum()) for name in norms)
    for f in found.values()
  }
  # An average of one sample has the statistics of y.
  assert len(seen) >= len(study.WAYS) - 1


def test_values_are_those_at_the_fractions():
  points = [[s, 1.0, s / 100] for s in range(30, 101, 2)]
  run = result(
    {SHOWN: points}, method='m', statistics='current', higher_is_better=True
  )
  other = result(
    {SHOWN: points[20:]},
    method='m',
    statistics='averaged',
    seed=1,
    higher_is_better=True,
  )
  rows = study.rows_of([run, other])
  assert tuple(rows[0]) == study.COLUMNS
  committed = study.STUDY.committed('running_statistics.json')
  assert tuple(committed[0]) == study.COLUMNS
  assert rows[0]['at 0.4 T'] == 0.4
  assert rows[0]['at 0.9 T'] == 0.9
  assert rows[0]['steps_to_target'] == 50
  assert rows[1]['at 0.4 T'] == 0.7
  header, *found = lines(study.table(rows))
  assert [line[2] for line in found] == ['current', 'averaged']
  shown = dict(zip(header, found[0], strict=True))
  assert shown['at 0.8 T'] == '0.8000'
  assert shown['steps to target, of T'] == '0.50'


def test_a_diverged_seed_is_worse_than_any_other():
  nan = float('nan')
  runs = [
    result(
      {SHOWN: [[100, 1.0, value]]}, seed=seed, method='m', statistics='current'
    )
    for seed, value in enumerate((0.3, nan, nan))
  ]
  header, line = lines(study.table(study.rows_of(runs)))
  assert dict(zip(header, line, strict=True))['at 1 T'] == '–'
