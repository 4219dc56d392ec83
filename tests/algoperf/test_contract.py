"""Test each thing that the benchmark does to a submission beside training."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import algoperf_support as support
import numpy as np
import pytest
import torch
from algoperf_batches import make_batch

pytestmark = support.MARKS


def start(submission, workload, point=None, **kwargs):
  return support.Run(
    support.load_submission(submission),
    workload,
    point or support.hyperparameters(submission),
    [make_batch('mnist', seed=step) for step in range(4)],
    **kwargs,
  )


def test_our_types_are_the_benchmarks():
  from weightavg import spec

  theirs = support.quiet_import('algoperf.spec')
  for name in spec.__all__:
    assert getattr(spec, name) is getattr(theirs, name)


def test_averaging_alone_imports_nothing_of_the_benchmark():
  program = (
    'import sys, weightavg.submission_config, weightavg.pytorch.averager\n'
    "heavy = {'algoperf', 'jax', 'tensorflow'} & set(sys.modules)\n"
    'sys.exit(str(heavy) if heavy else 0)'
  )
  subprocess.run([sys.executable, '-c', program], check=True, cwd=support.ROOT)


@pytest.mark.parametrize('submission', support.SUBMISSIONS)
def test_every_workload_and_variant_has_a_batch_size(submission):
  registry = support.quiet_import('algoperf.workloads.workloads')
  get_batch_size = support.load_submission(submission).get_batch_size
  sizes = {}
  for name in registry.WORKLOADS:
    # As the runner asks: an unknown variant is asked for by its base's name.
    try:
      sizes[name] = get_batch_size(name)
    except ValueError:
      sizes[name] = get_batch_size(registry.get_base_workload_name(name))
    assert sizes[name] % 8 == 0
  assert sizes['imagenet_resnet_gelu'] == sizes['imagenet_resnet_silu'] == 512
  assert sizes['imagenet_resnet_large_bn_init'] == 1024
  assert sizes['criteo1tb_test'] == 262_144
  assert sizes['wmt_glu_tanh'] == 128


@pytest.mark.parametrize(
  'variant',
  [
    'fastmri_layernorm',
    'imagenet_resnet_gelu',
    'imagenet_vit_map',
    'librispeech_conformer_gelu',
    'librispeech_deepspeech_norm_and_spec_aug',
    'ogbg_silu',
  ],
)
def test_a_variant_trains_and_evaluates(variant):
  run = support.Run(
    support.load_submission('nadamw_lawa'),
    support.make_workload(variant),
    support.hyperparameters('nadamw_lawa'),
    [make_batch(variant)],
  )
  run.step()
  run.step()
  raw = support.fingerprint(run.model)
  run.prepare_for_eval()
  assert support.fingerprint(run.model) != raw
  for _, output in support.tensors_of(run.evaluate()):
    assert output.isfinite().all()


@pytest.mark.parametrize('submission', support.SUBMISSIONS)
def test_train_state_may_be_full_empty_or_missing(submission):
  full = {'accumulated_submission_time': 0.0, 'is_time_remaining': True}
  results = []
  for extra in (
    {},
    {'train_state': {}},
    {'train_state': types.MappingProxyType(full)},
  ):
    run = start(submission, support.make_workload('mnist'))
    run.step(**extra)
    run.step(**extra)
    results.append(support.fingerprint(run.model))
  assert results[0] == results[1] == results[2]


def test_weights_may_be_missing_from_a_batch():
  runs = []
  for kept in (True, False):
    run = start('nadamw_ema', support.make_workload('mnist'))
    if not kept:
      for batch in run.batches:
        del batch['weights']
    run.step()
    runs.append(support.fingerprint(run.model))
  assert runs[0] == runs[1]


def test_a_new_model_state_is_handed_on():
  workload = support.make_workload('mnist')
  model_fn = workload.model_fn

  def counting(params, batch, model_state, *args, **kwargs):
    logits, _ = model_fn(params, batch, model_state, *args, **kwargs)
    return logits, (model_state or 0) + 1

  def keywords_too(**kwargs):
    batch = kwargs.pop('augmented_and_preprocessed_input_batch')
    return counting(kwargs.pop('params'), batch, **kwargs)

  workload.model_fn = keywords_too
  run = start('nadamw_lawa', workload)
  run.step()
  run.step()
  run.prepare_for_eval()
  assert run.model_state == 2


def test_epochs_of_a_real_workload_are_known():
  point = support.hyperparameters('nadamw_lawa')._asdict()
  del point['averaging_horizon'], point['averaging_every']
  point['averaging_preset'] = 'kaddour2022'
  run = start('nadamw_lawa', support.workload_class('mnist')(), point)
  # 50,000 examples, 16 in a batch.
  assert run.state['averager'].sampling.every == 3125


@pytest.mark.parametrize('submission', support.SUBMISSIONS)
def test_compiled_names_reach_the_checkpoint_but_not_our_state(
  submission, tmp_path
):
  compiled = {'wrap': lambda model: torch.compile(model, backend='eager')}
  run = start(submission, support.make_workload('mnist'), **compiled)
  run.step()
  run.step()
  run.prepare_for_eval()
  run.save(tmp_path)
  run.step()
  saved = torch.load(tmp_path / 'checkpoint_2')
  assert all(name.startswith('_orig_mod.') for name in saved['model_params'])
  named = [
    *saved['optimizer_state']['averager']['buffers'],
    saved['optimizer_state']['averager']['raw'],
  ]
  clean = {name.removeprefix('_orig_mod.') for name in saved['model_params']}
  assert all(set(tensors) in (clean, set()) for tensors in named)

  again = start(submission, support.make_workload('mnist'), seed=7, **compiled)
  assert again.restore(tmp_path) == 1
  again.step()
  assert support.fingerprint(again.model) == support.fingerprint(run.model)
  # The averager does not care how the model was wrapped when it was saved.
  bare = start(submission, support.make_workload('mnist'), seed=7)
  bare.model.load_state_dict(
    {k.removeprefix('_orig_mod.'): v for k, v in saved['model_params'].items()}
  )
  for key, value in bare.state.items():
    value.load_state_dict(saved['optimizer_state'][key])
  bare.global_step = 2
  bare.step()
  assert support.fingerprint(bare.model) == support.fingerprint(run.model)


def test_the_loss_may_be_compiled_as_the_runner_does():
  runs = []
  for is_compiled in (False, True):
    workload = support.make_workload('ogbg')
    if is_compiled:
      workload.loss_fn = torch.compile(workload.loss_fn, backend='eager')
    run = support.Run(
      support.load_submission('nadamw_lawa'),
      workload,
      support.hyperparameters('nadamw_lawa'),
      [make_batch('ogbg')],
    )
    run.step()
    runs.append(support.fingerprint(run.model))
  assert runs[0] == runs[1]


@pytest.mark.parametrize('submission', support.SUBMISSIONS)
def test_saving_twice_and_resuming_between_changes_nothing(
  submission, tmp_path
):
  run = start(submission, support.make_workload('mnist'))
  run.step()
  run.step()
  run.prepare_for_eval()
  run.prepare_for_eval()
  run.save(tmp_path)
  run.save(tmp_path)
  again = start(submission, support.make_workload('mnist'), seed=7)
  again.restore(tmp_path)
  again.prepare_for_eval()
  again.save(tmp_path)
  last = start(submission, support.make_workload('mnist'), seed=8)
  last.restore(tmp_path)
  for each in (run, again, last):
    each.step()
  first = support.state_fingerprint(run.state)
  assert first == support.state_fingerprint(again.state)
  assert first == support.state_fingerprint(last.state)


@pytest.mark.parametrize('submission', support.SUBMISSIONS)
def test_the_benchmarks_search_reads_every_point(submission):
  halton = support.quiet_import('algoperf.halton')
  space = json.loads(support.search_space(submission).read_text())
  points = halton.generate_search(space, 5)
  assert len(points) == 5
  workload = support.make_workload('mnist')
  for point in points:
    model, _ = workload.init_model_fn(np.array([0, 1]))
    state = support.load_submission(submission).init_optimizer_state(
      workload, model, None, point, None
    )
    group = state['optimizer'].param_groups[0]
    assert group['weight_decay'] == point.weight_decay


@pytest.mark.parametrize('workload', ['mnist', 'ogbg'])
def test_the_benchmarks_own_test_of_submissions_passes(workload, tmp_path):
  runner = pathlib.Path(importlib.util.find_spec('submission_runner').origin)
  if not (runner.parent / 'tests' / 'reference_algorithm_tests.py').exists():
    pytest.skip('AlgoPerf was installed without its tests')
  submission = 'nadamw_lawa'
  result = subprocess.run(
    [
      sys.executable,
      '-m',
      'tests.reference_algorithm_tests',
      f'--workload={workload}',
      '--framework=pytorch',
      '--global_batch_size=4',
      f'--submission_path=submissions/{submission}/submission.py',
      f'--tuning_search_space={support.search_space(submission)}',
      f'--log_file={tmp_path}/log.pkl',
    ],
    cwd=support.ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-3000:]
