"""Post-hoc averages against exact ones."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lab.core.errors import InputError
from lab.offline import averaging, posthoc
from lab.offline.__main__ import main
from lab.offline.readers import Checkpoint
from weightavg.schemes import Ema, Polynomial

SAMPLES = 2000
POWERS = tuple(map(posthoc.power_of_sigma, posthoc.SIGMAS))


def known(snapshots, samples=SAMPLES):
  counts = range(samples // snapshots, samples + 1, samples // snapshots)
  return [(Polynomial(power), k) for k in counts for power in POWERS]


@pytest.mark.parametrize('scheme', [Polynomial(2.5), Polynomial(0.0), Ema(0.9)])
def test_closed_forms_of_weights_equal_the_recursion(scheme):
  expected = np.zeros(60)
  expected[:50] = scheme.weights(50)
  found = np.concatenate(
    [posthoc.weights(scheme, 50, b, b + 20) for b in (0, 20, 40)]
  )
  # lgamma in float64, exponentiated.
  np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize('sigma', [0.02, 0.05, 0.1, 0.25])
def test_power_has_the_relative_width(sigma):
  weights = posthoc.weights(
    Polynomial(posthoc.power_of_sigma(sigma)), 20_000, 0, 20_000
  )
  t = np.arange(1, 20_001) / 20_000
  mean = (weights * t).sum()
  width = math.sqrt((weights * (t - mean) ** 2).sum())
  # The formula is the limit of many samples: 1/20,000 of the run is 0.25 %
  # of a width of 0.02.
  assert width == pytest.approx(sigma, rel=2.5e-3)


def test_widths_beyond_the_uniform_mean_are_refused():
  with pytest.raises(InputError, match=r'sigma_rel=0\.3'):
    posthoc.power_of_sigma(0.3)


def test_a_tracked_average_is_found_exactly():
  coefficients, error = posthoc.solve(
    known(8), (Polynomial(POWERS[1]), SAMPLES)
  )
  assert error < 1e-9
  assert coefficients[-1] == pytest.approx(1.0)


# Measured: 0.4-2.5 % (power functions) and 0.2-1.5 % (exponential ones).
@pytest.mark.parametrize('sigma', [0.04, 0.075, 0.15])
def test_reconstruction_errors_are_small_and_shrink_with_more_snapshots(sigma):
  wanted = {
    'power': Polynomial(posthoc.power_of_sigma(sigma)),
    # An exponential of time constant tau has the width tau.
    'exponential': Ema(1 - 1 / (sigma * SAMPLES)),
  }
  for scheme in wanted.values():
    errors = []
    for snapshots in (8, 20):
      coefficients, error = posthoc.solve(known(snapshots), (scheme, SAMPLES))
      assert sum(coefficients) == pytest.approx(1.0)
      combined = sum(
        c * posthoc.weights(s, k, 0, SAMPLES)
        for c, (s, k) in zip(coefficients, known(snapshots), strict=True)
      )
      exact = posthoc.weights(scheme, SAMPLES, 0, SAMPLES)
      # What is reported is what it is.
      gap = np.linalg.norm(combined - exact) / np.linalg.norm(exact)
      assert gap == pytest.approx(error, rel=1e-6)
      errors.append(error)
    assert errors[0] < 0.06
    assert errors[1] < errors[0] / 2


def walk(folder, steps=400, every=20):
  """A model on a random walk with drift, its samples and snapshots."""
  model = nn.Linear(3, 2).double()
  accumulators = posthoc.Accumulators(model)
  samples = []
  for step in range(1, steps + 1):
    with torch.no_grad():
      for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p) + 0.01)
    accumulators.update()
    samples.append(model.weight.detach().clone())
    if step % every == 0:
      accumulators.save(str(folder))
  return model, accumulators, samples


def test_average_command_comes_near_the_exact_averages(tmp_path, capsys):
  model, _, samples = walk(tmp_path)
  raw = model.weight.detach().clone()
  exact = {}
  for name, scheme in {
    'sigma_rel_0.075': Polynomial(posthoc.power_of_sigma(0.075)),
    'decay_0.96': Ema(0.96),
  }.items():
    weights = scheme.weights(len(samples))
    exact[name] = sum(w * x for w, x in zip(weights, samples, strict=True))
  for name in exact:
    flag, _, value = name.rpartition('_')
    assert not main(
      ['average', '--scheme', 'posthoc', f'--{flag}', value, '--checkpoints',
       str(tmp_path / 'posthoc_*'), '--output', str(tmp_path / f'{name}.pt')]
    )  # fmt: skip
    with Checkpoint(str(tmp_path / f'{name}.pt')) as found:
      got = found.tensor('weight')
    # 1 % of the distance between the average and where the weights are.
    distance = (exact[name] - raw).norm()
    assert (got - exact[name]).norm() < 0.01 * distance
  assert capsys.readouterr().out.count('relative error') == 2


def test_a_tracked_width_comes_out_of_the_command_exactly(tmp_path):
  _, _, samples = walk(tmp_path)
  out = tmp_path / 'a.safetensors'
  assert not main(
    ['average', '--scheme', 'posthoc', '--sigma_rel', '0.1', '--at', '200',
     '--checkpoints', str(tmp_path / 'posthoc_*'), '--sums', 'float64',
     '--output', str(out)]
  )  # fmt: skip
  weights = Polynomial(POWERS[1]).weights(200)
  exact = sum(w * x for w, x in zip(weights, samples, strict=False))
  with Checkpoint(str(out)) as found:
    # The solution's own residual, of 1e-7 directions left out.
    torch.testing.assert_close(found.tensor('weight'), exact, rtol=0, atol=1e-6)


def test_accumulators_continue_from_their_state(tmp_path):
  model, accumulators, _ = walk(tmp_path, steps=20)
  again = posthoc.Accumulators(model)
  again.load_state_dict(accumulators.state_dict())
  for other in (accumulators, again):
    other.update()
  (tmp_path / 'x').mkdir()
  paths = [accumulators.save(str(tmp_path)), again.save(str(tmp_path / 'x'))]
  for a, b in zip(*paths, strict=True):
    with Checkpoint(a) as one, Checkpoint(b) as two:
      assert torch.equal(one.tensor('weight'), two.tensor('weight'))


def test_other_files_and_steps_without_snapshot_are_refused(tmp_path, capsys):
  walk(tmp_path, steps=40)
  arguments = ['average', '--scheme', 'posthoc', '--sigma_rel', '0.07']
  for useless in (
    ('--key', 'a'), ('--step_pattern', '(.)'), ('--budget', '3'),
    ('--weights', 'evaluated'),
  ):  # fmt: skip
    place = ['--checkpoints', str(tmp_path / 'posthoc_*'), '--output', 'a.pt']
    assert main([*arguments, *place, *useless])
    message = f'Invalid {useless[0][2:]}. It has no effect with scheme=posthoc.'
    assert message in capsys.readouterr().err
  arguments += ['--output', str(tmp_path / 'a.pt'), '--checkpoints']
  assert main([*arguments, str(tmp_path / 'posthoc_*'), '--at', '30'])
  assert 'Invalid at=30. Must be the step of a snapshot' in (
    capsys.readouterr().err
  )
  (tmp_path / 'posthoc_x.safetensors').write_bytes(b'')
  assert main([*arguments, str(tmp_path / 'posthoc_*')])
  assert 'not a snapshot' in capsys.readouterr().err


def test_accumulators_may_sample_every_so_many_steps(tmp_path):
  accumulators = posthoc.Accumulators(nn.Linear(1, 1), every=2)
  for _ in range(4):
    accumulators.update()
  assert [p.rpartition('_')[2] for p in accumulators.save(str(tmp_path))] == [
    '4.safetensors'
  ] * len(posthoc.SIGMAS)


@pytest.mark.parametrize(
  ('scheme', 'flag', 'averaged'),
  [
    (['posthoc', '--sigma_rel', '0.1'], [], False),
    (['posthoc', '--sigma_rel', '0.1'], ['--batch_norm', 'averaged'], True),
    (['lawa', '--window', '2'], [], True),
    (['lawa', '--window', '2'], ['--batch_norm', 'current'], False),
  ],
)
def test_post_hoc_weights_do_not_touch_variances(
  scheme, flag, averaged, tmp_path, monkeypatch
):
  walk(tmp_path, steps=40)
  seen = []
  monkeypatch.setattr(
    averaging,
    'write_averages',
    lambda _, jobs, *args, statistics, **kwargs: (
      seen.append(statistics) or [(job, None) for job in jobs]
    ),
  )
  name = 'posthoc_*' if scheme[0] == 'posthoc' else 'posthoc_0_*'
  pattern = str(tmp_path / name)
  main(
    ['average', '--scheme', *scheme, '--checkpoints', pattern, *flag,
     '--output', str(tmp_path / 'out.safetensors')]
  )  # fmt: skip
  assert seen == [averaged]
