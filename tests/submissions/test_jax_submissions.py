"""The contract of the submissions in JAX."""

import numpy as np
import pytest
from jax_submissions import (
  AUTO,
  BARE,
  FOLDERS,
  ONLY,
  PRIMAL,
  REFRESHED,
  Host,
  is_equal,
  run,
)
from jax_support import import_jax
from jax_trees import assert_equal

jax = import_jax('jax')
jax_host = import_jax('jax_host')
spec = import_jax('weightavg.spec')


def test_every_submission_in_jax_is_found():
  assert FOLDERS == [
    'nadamw_auto_jax',
    'nadamw_ema_jax',
    'nadamw_jax',
    'nadamw_lawa_jax',
    'nadamw_primal_jax',
    'nadamw_schedule_free_jax',
  ]


@pytest.mark.parametrize('folder', FOLDERS)
def test_evaluations_show_averages_and_do_not_disturb_training(folder):
  """Weights and statistics change, and come back bit for bit."""
  with_evaluations = Host(folder, **ONLY.get(folder, {}))
  without = Host(folder, **ONLY.get(folder, {}))
  for step in range(6):
    with_evaluations.update()
    without.update()
    assert_equal(with_evaluations.shown(), with_evaluations.raw())
    if step in (3, 5):
      before = with_evaluations.raw()
      with_evaluations.prepare_for_eval()
      once = with_evaluations.shown()
      with_evaluations.prepare_for_eval()
      assert_equal(with_evaluations.shown(), once)
      assert_equal(with_evaluations.raw(), before)
      assert is_equal(once[0], before[0]) == (folder == BARE)
      assert is_equal(once[1], before[1]) == (folder in (BARE, PRIMAL))
  without.prepare_for_eval()
  assert_equal(with_evaluations.shown(), without.shown())
  assert_equal(with_evaluations.raw(), without.raw())
  # One trace of the step, whatever happened between; auto also compiles the
  # loss on its probe once, after a look at its shape.
  modes = [trace[0] for trace in with_evaluations.workload.traces]
  assert modes.count(spec.ForwardPassMode.TRAIN) == 1
  assert modes.count(spec.ForwardPassMode.EVAL) == (2 if folder == AUTO else 0)


@pytest.mark.parametrize('folder', FOLDERS)
@pytest.mark.parametrize(
  'device_axis', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_resumed_run_equals_the_undisturbed_one(
  folder, device_axis, tmp_path
):
  """Right after prepare_for_eval, as the benchmark saves, by its own calls."""
  changes = {
    AUTO: {'averaging_probe_every': 0.006},
    REFRESHED: {'warmup_steps': 2, 'averaging_refresh_every': 3},
  }.get(folder, {})
  host, fresh = Host(folder, **changes), Host(folder, **changes)
  for _ in range(5):
    host.update()
  host.prepare_for_eval()
  host.save(tmp_path)
  fresh.restore(tmp_path, device_axis)
  for h in (host, fresh):
    for _ in range(2):
      h.update(train_state={})
    h.prepare_for_eval()
  assert_equal(fresh.everything(), host.everything())


@pytest.mark.usefixtures('devices')
@pytest.mark.parametrize(
  'placement', ['device', pytest.param('sharded', marks=pytest.mark.slow)]
)
def test_several_devices(placement, tmp_path):
  """Resumed equals undisturbed; a sharded average equals a replicated one."""
  changes = {'averaging_placement': placement}
  host = Host('nadamw_lawa_jax', **changes)
  fresh, replicated = (
    Host('nadamw_lawa_jax', **changes),
    Host('nadamw_lawa_jax'),
  )
  for _ in range(4):
    host.update()
    replicated.update()
  host.prepare_for_eval()
  replicated.prepare_for_eval()
  assert_equal(host.everything(), replicated.everything())
  window = host.state[0].train.averages.parts[0].window[0]
  shard = window['out'].addressable_shards[0].data.shape
  # (window, 6, 2): four devices divide nothing of `out`; `hidden` is (4, 6).
  assert shard == window['out'].shape
  hidden = window['hidden'].addressable_shards[0].data.shape
  full = window['hidden'].shape
  assert hidden == (
    (full[0], full[1] // 4, full[2]) if placement == 'sharded' else full
  )
  assert len(host.params['hidden'].sharding.device_set) == 4
  host.save(tmp_path)
  fresh.restore(tmp_path, device_axis=True)
  for h in (host, fresh):
    h.update()
    h.prepare_for_eval()
  assert_equal(fresh.everything(), host.everything())


def test_a_step_uses_its_state_up_and_not_the_hosts_parameters():
  """Donated: the state's buffers are reused; init has copied the host's."""
  host = Host('nadamw_ema_jax')
  initial = jax.tree.leaves((host.params, host.model_state))
  for _ in range(2):
    before = jax.tree.leaves(host.state[0].train)
    host.update()
    assert all(leaf.is_deleted() for leaf in before)
  assert not any(leaf.is_deleted() for leaf in initial)


@pytest.mark.usefixtures('devices')
def test_several_devices_get_copies_of_the_hosts_parameters():
  """Replicating an array may give its own device the caller's buffer."""
  host = Host('nadamw_ema_jax')
  initial = jax.tree.leaves((host.params, host.model_state))
  for _ in range(2):
    host.update()
  assert not any(leaf.is_deleted() for leaf in initial)


def test_loss_is_a_mean_over_valid_examples_and_clipped():
  masked = Host('nadamw_jax', grad_clip=1e-3)
  cut = Host('nadamw_jax', grad_clip=1e-3)
  batch = next(masked.batches())
  # The model normalises by the batch: repeat rows, so that it sees the same.
  half = {k: np.concatenate([v[:8], v[:8]]) for k, v in batch.items()}
  cut.update(half)
  half['weights'] = np.float32([1] * 8 + [0] * 8)
  masked.update(half)
  # Another order of sums.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    masked.raw(),
    cut.raw(),
  )
  moment = masked.state[0].train.optimizer[0].mu
  one_minus_beta1 = masked.hyperparameters.one_minus_beta1
  norm = np.sqrt(sum(np.sum(np.square(m)) for m in jax.tree.leaves(moment)))
  assert norm / one_minus_beta1 == pytest.approx(1e-3, rel=1e-2)
  before = masked.raw()[0]
  zeros = Host('nadamw_jax', weight_decay=0.0)
  half['weights'] = np.zeros(16, np.float32)
  before = zeros.raw()[0]
  zeros.update(half)
  assert_equal(zeros.raw()[0], before)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_gradients_of_16_bits_are_clipped_by_their_true_norm(
  dtype, monkeypatch
):
  # Its square is too large for float16.
  large = jax.tree.map(lambda x: x.astype(dtype), jax_host.model())
  monkeypatch.setattr(jax_host, 'model', lambda: large)
  host = Host('nadamw_jax', grad_clip=1.0)
  batch = next(host.batches())
  batch = {k: v.astype(dtype) for k, v in batch.items()}
  host.update(batch | {'targets': batch['targets'] * 1000})
  moment = host.state[0].train.optimizer[0].mu
  norm = np.sqrt(sum(np.sum(np.square(m)) for m in jax.tree.leaves(moment)))
  # Each gradient is rounded to 8 bits or more.
  one_minus_beta1 = host.hyperparameters.one_minus_beta1
  assert norm / one_minus_beta1 == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize('folder', FOLDERS)
def test_nothing_is_left_for_the_evaluation_to_compute(folder, monkeypatch):
  host = run(Host(folder, **ONLY.get(folder, {})), 12)
  waited = []
  wait = jax.block_until_ready
  monkeypatch.setattr(
    jax, 'block_until_ready', lambda x: waited.append(x) or wait(x)
  )
  host.prepare_for_eval()
  leaves = {id(leaf) for leaf in jax.tree.leaves(waited)}
  shown = jax.tree.leaves((host.state[0].train, host.params))
  assert all(id(leaf) in leaves for leaf in shown)


def test_rows_are_logged_after_they_are_computed():
  rows = []

  class Logger:
    def append_scalar_metrics(self, metrics, global_step):
      rows.append((global_step, metrics))

  host = Host('nadamw_jax', label_smoothing=0.125, dropout_rate=0.25)
  host.workload.metrics_logger = Logger()
  trainer, made = host.state[1], []
  compiled = trainer._compiled_step
  trainer._compiled_step = lambda *args: (
    made.append(len(rows)) or compiled(*args)
  )
  for step in (0, 100, 101, 499, 500):
    host.step = step
    host.update()
  assert [step for step, _ in rows] == [0, 100]
  # A step is on its way before the row of the step before is waited for.
  assert made == [0, 0, 1, 2, 2]
  host.prepare_for_eval()
  assert [step for step, _ in rows] == [0, 100, 500]
  assert sorted(rows[0][1]) == ['grad_norm', 'loss']
  assert host.workload.smoothing == 0.125
  assert host.workload.traces == [(spec.ForwardPassMode.TRAIN, True, 0.25)]


@pytest.mark.parametrize('folder', ['nadamw_jax', 'nadamw_schedule_free_jax'])
def test_without_a_dropout_the_model_has_its_own(folder):
  host = Host(folder, dropout_rate=None)
  host.update()
  assert {rate for *_, rate in host.workload.traces} == {0.5}


def test_auto_chooses_the_lowest_loss_and_logs_it():
  rows = {}

  class Logger:
    def append_scalar_metrics(self, metrics, global_step):
      rows.update(metrics)

  host = Host(AUTO, averaging_candidates='raw, ema 0.1, polynomial 4')
  host.workload.metrics_logger = Logger()
  host.prepare_for_eval()  # without a probe or a sample: raw
  assert_equal(host.shown(), host.raw())
  for _ in range(6):
    host.update()
  host.prepare_for_eval()
  names = ['raw', 'ema 0.1', 'polynomial 4']
  losses = [rows[f'probe_loss/{name}'] for name in names]
  which = rows['averaging_choice']
  assert losses[which] == min(losses)
  assert len(set(losses)) == 3
  state, trainer = host.state
  assert_equal(host.shown(), trainer.shown(state, which))
