"""Rows of the sections of `make gpu`, measured without a GPU."""

import importlib.util
import math
import pathlib
import time

import pytest
import torch

from benchmarks.gpu import averages, collectives, timing
from benchmarks.gpu import section as one_section
from benchmarks.gpu.setting import Setting, SkippedError
from benchmarks.gpu.synchronisations import total, waits

SMOKE = Setting(torch.device('cpu'), smoke=True)
HAS_ALGOPERF = importlib.util.find_spec('algoperf') is not None
# Importing torch's compiler warns of torch's own use of TorchScript.
compiles = pytest.mark.filterwarnings(
  'ignore:.*torch.jit.script:DeprecationWarning'
)


@pytest.fixture(autouse=True)
def settings_of_torch():
  precision = torch.get_float32_matmul_precision()
  cudnn = torch.backends.cudnn.benchmark
  yield
  torch.set_float32_matmul_precision(precision)
  torch.backends.cudnn.benchmark = cudnn


def collect(rows, found):
  for name, values in rows:
    found[name] = values


def test_a_backend_that_fails_hides_no_other(monkeypatch):
  def torchrun(count, module, *arguments, timeout):
    rows = pathlib.Path(arguments[arguments.index('--rows') + 1])
    if 'nccl' in arguments:
      rows.write_text('["first", {"ms": 1.0}]\n')
      raise RuntimeError('benchmarks.gpu.ranks ended with 1.')
    rows.write_text('["first", {"ms": 2.0}]\n')

  def laboratory(setting):
    yield 'lab', {'loss': 1.0}

  monkeypatch.setattr(collectives, 'torchrun', torchrun)
  monkeypatch.setattr(collectives, 'laboratory', laboratory)
  found = {}
  rows = collectives.measure(Setting(torch.device('cpu')))
  with pytest.raises(RuntimeError, match=r'Not measured: nccl, 1 ranks \('):
    collect(rows, found)
  assert found == {
    'nccl, 1 ranks/first': {'ms': 1.0},
    'gloo, 2 ranks/first': {'ms': 2.0},
    'lab': {'loss': 1.0},
  }


def test_a_library_that_cannot_be_measured_hides_no_row(monkeypatch):
  def broken(model):
    raise ImportError('undefined symbol')

  monkeypatch.setitem(averages.PEERS, 'timm ModelEmaV3', broken)
  found = {}
  with pytest.raises(
    RuntimeError, match=r'ModelEmaV3 \(ImportError: undefined'
  ):
    collect(averages.measure(SMOKE), found)
  assert {'tiny/torch AveragedModel', 'tiny/swap in and out, copy'} < {*found}


def rows_of(name):
  return dict(one_section.rows_of(name, SMOKE))


def test_averages_are_shown_and_taken_back():
  rows = rows_of('averages')
  for how in ('exchange', 'copy'):
    values = rows[f'tiny/swap in and out, {how}']
    assert values['average_shown']
    assert values['raw_bit_identical']
  assert rows['tiny/flat copy']['copies'] == 1.0
  assert {'tiny/EMA update', 'tiny/torch AveragedModel'} < {*rows}


def test_optimizers_are_compared_with_fused_adamw():
  rows = rows_of('optimizers')
  assert rows['tiny/AdamW, fused']['of_fused_adamw'] == 1.0
  assert rows['tiny/NadamW']['ms'] > 0


def test_shampoo_in_float32_is_near_float64():
  rows = rows_of('shampoo')
  # Four steps with roots of small matrices in float32: eps times the condition
  # of the roots.
  assert rows['error/tiny/float32']['largest_relative_error'] < 1e-3
  assert rows['step/tiny/float32']['root_step_ms'] > 0


@compiles
def test_cuda_graphs_section_compares_with_eager():
  rows = rows_of('cuda_graphs')
  assert {*rows} == {'copy', 'exchange'}
  for values in rows.values():
    assert values['raw_bit_identical']
    assert values['loss_average'] != values['loss_raw']
    # The same backend runs both.
    assert values['compiled_minus_eager_average'] == 0.0
    assert values['next_step_minus_eager'] == 0.0


@pytest.mark.slow
@pytest.mark.skipif(HAS_ALGOPERF, reason='the real models take minutes')
def test_every_placement_is_measured_on_a_stand_in():
  rows = rows_of('placements')
  placed = [name for name in rows if not name.endswith('none')]
  assert len(placed) == 6
  assert all(rows[name]['raw_bit_identical'] for name in placed)
  assert 'not importable' in rows['wide_stdlib_lm/none']['model_of']


@pytest.mark.slow
@pytest.mark.skipif(HAS_ALGOPERF, reason='the real models take minutes')
@pytest.mark.parametrize('name', ['finewebedu_lm', 'imagenet_resnet'])
@compiles
def test_training_is_measured_on_a_stand_in(name):
  rows = rows_of(f'train_{name}')
  model, *pairs = rows
  assert 'not importable' in rows[model]['model_of']
  assert f'{model}/nadamw_ema/eager' in pairs
  for pair in pairs:
    assert rows[pair]['raw_bit_identical']
    assert rows[pair]['weights_finite']
    assert rows[pair]['graphs_compiled_by_swap'] == 0
    values = rows[pair]
    # Beside the average the row has its control: names tell them apart.
    assert {'control_peak_gigabytes', 'average_gigabytes'} < {*values}
    assert math.isclose(
      values['percent_at_that_cadence'] * values['steps_between_samples'],
      100 * values['sample_ms'] / values['control_ms'],
      rel_tol=1e-9,
    )


@pytest.mark.skipif(HAS_ALGOPERF, reason='the real models take minutes')
def test_a_model_without_a_stand_in_is_skipped():
  with pytest.raises(SkippedError, match='AlgoPerf is not importable'):
    rows_of('train_wmt')


@pytest.mark.slow
def test_two_ranks_agree():
  rows = rows_of('collectives')
  for scheme in ('ema', 'lawa'):
    values = rows[f'gloo, 2 ranks/{scheme}/sharded']
    assert values['largest_difference_to_device'] == 0.0
    assert values['raw_bit_identical']
  exchanged = rows['gloo, 2 ranks/shampoo/bfloat16']
  assert exchanged['ranks_agree']
  # Updates are rounded to 8 bits, and so differ by at most 2^-8.
  assert 0 < exchanged['largest_relative_difference_to_float32'] < 2**-8


def test_interleaved_times_are_those_of_one_call():
  clock = {'a': 0.02, 'b': 0.04}
  times = timing.interleaved(
    {name: lambda s=seconds: time.sleep(s) for name, seconds in clock.items()},
    torch.device('cpu'),
    rounds=3,
    calls=2,
  )
  # A sleep is never shorter than it was asked for.
  assert times['a'] >= 20
  assert times['b'] >= 40


def test_waits_are_not_counted_on_a_cpu():
  assert waits(lambda: None, torch.device('cpu')) is None
  assert total(None) is None
  assert total({'a.py:1': 2, 'torch': 1}) == 3
