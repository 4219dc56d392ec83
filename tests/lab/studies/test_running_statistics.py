"""Ways to running statistics at x: what is trained, measured and shown."""

import argparse

import pytest
import torch
from study_runs import lines, result

from lab.run import from_python
from lab.studies import running_statistics as study
from lab.studies.parts.shown import SHOWN
from lab.workloads import build_workload, glyph_resnet


class _Looks:
  """Keeps the model's buffers at each evaluation, before and behind it."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.buffers = []

  def instead_of_evaluation(self, run, rng):
    model = run.state.model_params
    # Any later step would show a difference in the weights.
    before = [b.clone() for b in model.buffers()]
    done = super().instead_of_evaluation(run, rng)
    same = map(torch.equal, before, model.buffers())
    self.buffers.append((torch.cat([b.flatten() for b in before]), all(same)))
    return done


def looking(kind):
  return type('Looking', (_Looks, kind), {})


def test_training_is_the_same_and_recomputed_statistics_are_put_back(
  shrink, tmp_path
):
  shrink(glyph_resnet.Workload, steps=40, eval_every_steps=20, size=64)
  options = argparse.Namespace(
    workloads=['glyph_resnet'], seeds=[0], methods=['nadamw_primal']
  )
  runs = study.trainings(options)
  assert [run.columns['statistics'] for run in runs] == [*study.WAYS]
  assert len({run.name for run in runs}) == len(runs)
  curves, final = {}, {}
  for run in runs:
    way = run.columns['statistics']
    follower = looking(run.follower)(evaluated_from=0.0)
    state = from_python.train(
      build_workload('glyph_resnet'),
      run.submission_path,
      dict(run.point),
      0,
      str(tmp_path / way.replace(' ', '_')),
      [follower],
      40,
    )
    curves[way] = [p[2] for p in follower.findings()['curves'][SHOWN]]
    final[way] = torch.cat(
      [p.detach().flatten() for p in state.model_params.parameters()]
    )
    assert len(curves[way]) == 2
    assert all(same for _, same in follower.buffers)
  first = final['current']
  for way, weights in final.items():
    assert torch.equal(weights, first), way
  # Each way measures something else.
  assert len({tuple(curve) for curve in curves.values()}) >= 5


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
  assert rows[0]['at 0.4 T'] == 0.4
  assert rows[0]['at 0.9 T'] == 0.9
  assert rows[0]['steps_to_target'] == 50
  assert rows[1]['at 0.4 T'] == 0.7
  header, *found = lines(study.table(rows))
  assert [line[2] for line in found] == ['current', 'averaged']
  shown = dict(zip(header, found[0], strict=True))
  assert shown['at 0.8 T'] == '0.8000'
  assert shown['target at, of T'] == '0.50'


@pytest.mark.parametrize('way', study.WAYS)
def test_every_way_is_one_of_the_submission(way):
  fields = study.WAYS[way]
  every = fields.get('averaging_refresh_every')
  assert (every is not None) == (fields['averaging_batch_norm'] == 'refreshed')
  assert every is None or str(every) in way
