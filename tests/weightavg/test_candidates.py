"""Several averages at once: names, swaps, states, placements."""

import pytest
import torch
import torch.distributed as dist
from gloo import run_on_ranks
from placement_runs import PLACEMENTS, averager_of, change, values, weights
from tensors import assert_same, through_a_file
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch.choice import RAW
from weightavg.pytorch.placement import build_placement
from weightavg.schemes import Candidates, Ema, Lawa, Polynomial, Raw, auto

NAMES = 'raw, ema 0.2, lawa 0.3, polynomial 1.5, ema 0.4'


def config(names=NAMES, **knobs):
  return AveragingConfig.from_point(
    averaging_scheme='auto',
    averaging_candidates=names,
    averaging_every=0.1,
    **knobs,
  )


def test_the_default_is_that_of_the_design():
  sampling, scheme = AveragingConfig.from_point(
    averaging_scheme='auto'
  ).resolve(10_000)
  assert sampling.every == 20
  assert scheme == Candidates(
    ('raw', 'ema 0.01', 'ema 0.1', 'polynomial 4', 'polynomial 1.5'),
    (Raw(), Ema(0.8), Ema(0.98), Polynomial(4.0), Polynomial(1.5)),
  )


def test_horizons_are_in_samples_of_the_cadence():
  made = AveragingConfig.from_point(
    averaging_scheme='auto',
    averaging_candidates='lawa 0.1,  ema  0.05',
    averaging_every_steps=10,
  )
  assert made.resolve(1000)[1] == Candidates(
    ('lawa 0.1', 'ema 0.05'), (Lawa(10), Ema(0.8))
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', "Unknown candidate ''. Must be raw, lawa HORIZON,"),
    ('raw', 'Must name at least one average.'),
    ('raw, sma 0.1', "Unknown candidate 'sma 0.1'."),
    ('raw 0.1, ema 0.1', "raw takes no argument: '0.1'."),
    ('ema', "The horizon of ema is ''. Must be in (0, 1]."),
    ('ema 1.5', "The horizon of ema is '1.5'. Must be in (0, 1]."),
    ('ema 0.1 0.2', "The horizon of ema is '0.1 0.2'."),
    ('polynomial -1', "The power of polynomial is '-1'. Must be in [0, inf)."),
    ('polynomial inf', "The power of polynomial is 'inf'."),
    ('ema 0.1, ema 0.10', "Candidate 'ema 0.10' is given twice."),
  ],
)
def test_bad_candidates_are_named(text, message):
  with pytest.raises(ValueError, match='Invalid') as error:
    AveragingConfig.from_point(
      averaging_scheme='auto', averaging_candidates=text
    )
  assert str(error.value).startswith(f'Invalid averaging_candidates={text!r}. ')
  assert message in str(error.value)


@pytest.mark.parametrize(
  ('knobs', 'message'),
  [
    (
      {'averaging_scheme': 'ema', 'averaging_candidates': 'ema 0.1'},
      'only with auto',
    ),
    (
      {'averaging_scheme': 'auto', 'averaging_horizon': 0.1},
      'only with lawa or ema',
    ),
    (
      {'averaging_scheme': 'auto', 'averaging_probe_examples': 1},
      'Must be an integer in [2, inf) or null.',
    ),
    (
      {'averaging_scheme': 'auto', 'averaging_probe_every': 0},
      'Must be in (0, 1].',
    ),
  ],
)
def test_keys_without_effect_or_out_of_range(knobs, message):
  with pytest.raises(ValueError, match='Invalid') as error:
    AveragingConfig.from_point(**knobs)
  assert message in str(error.value)


def test_names_have_single_spaces():
  assert auto.names('raw,  ema   0.1') == ('raw', 'ema 0.1')


SINGLE = {
  1: {'averaging_scheme': 'ema', 'averaging_horizon': 0.2},
  2: {'averaging_scheme': 'lawa', 'averaging_horizon': 0.3},
  3: {'averaging_scheme': 'polynomial', 'averaging_power': 1.5},
  4: {'averaging_scheme': 'ema', 'averaging_horizon': 0.4},
}


@pytest.mark.parametrize('swap', ['exchange', 'copy'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_every_candidate_is_what_it_would_be_alone(placement, dtype, swap):
  named = weights(dtype)
  knobs = {'averaging_placement': placement, 'averaging_swap': swap}
  several = averager_of(named, config(**knobs), budget=10)
  alone = {
    which: averager_of(
      named,
      AveragingConfig.from_point(averaging_every=0.1, **single),
      budget=10,
    )
    for which, single in SINGLE.items()
  }
  for step in range(6):
    change(named, step)
    raw = values(named)
    several.update()
    for averager in alone.values():
      averager.update()
    for which in (RAW, 0):
      several.select(which)
      with several.evaluating():
        assert not several.swapped
        assert_same(values(named), raw)
    for which, averager in alone.items():
      with averager.evaluating():
        expected = values(named)
      several.select(which)
      with several.evaluating():
        assert several.swapped
        assert_same(values(named), expected)
      assert_same(values(named), raw)


@pytest.mark.parametrize('selected', [RAW, 0, 2, 3])
@pytest.mark.parametrize('source', PLACEMENTS)
@pytest.mark.parametrize('target', PLACEMENTS)
def test_states_convert_between_placements(source, target, selected):
  named = weights()
  averager = averager_of(named, config(averaging_placement=source), budget=10)
  for step in range(4):
    change(named, step)
    averager.update()
  averager.select(selected)
  averager.swap_in()
  saved = through_a_file(averager.state_dict())
  other = [(n, nn.Parameter(p.detach().clone())) for n, p in named]
  restored = averager_of(other, config(averaging_placement=target), budget=10)
  restored.load_state_dict(saved)
  assert restored.choice.selected == selected
  assert restored.swapped == averager.swapped == (selected > 0)
  for step in range(4, 7):
    for weights_, follower in ((named, averager), (other, restored)):
      follower.swap_out()
      change(weights_, step)
      follower.update()
      follower.swap_in()
    assert_same(values(other), values(named))
    assert_same(
      [t for b in restored.state_dict()['buffers'] for t in b.values()],
      [t for b in averager.state_dict()['buffers'] for t in b.values()],
    )


def test_states_of_other_candidates_are_refused():
  named = weights()
  saved = averager_of(named, config(), budget=10).state_dict()
  other = averager_of(named, config('raw, ema 0.2'), budget=10)
  with pytest.raises(ValueError, match='saved with candidates='):
    other.load_state_dict(saved)
  with pytest.raises(ValueError, match='selected=5'):
    averager_of(named, config(), budget=10).load_state_dict(
      saved | {'selected': 5}
    )


def test_a_choice_needs_the_raw_weights_in_place_and_a_candidate():
  named = weights()
  averager = averager_of(named, config(), budget=10)
  for which in (-2, 5):
    with pytest.raises(ValueError, match=r'an integer in \[-1, 5\)'):
      averager.select(which)
  averager.update()
  averager.select(1)
  with averager.evaluating(), pytest.raises(RuntimeError, match='swap_out'):
    averager.select(2)


def test_bytes_are_those_of_the_accumulators():
  tensors = [p.data for _, p in weights()]
  scheme = config().resolve(10)[1]
  placement = build_placement('device', scheme, tensors)
  for _ in range(5):
    placement.add(tensors)
  # matrix, last, scalar, strided and gaps in float32, double in float64.
  one = 4 * (37 * 3 + 3 * 4 * 5 * 2 + 1 + 6 * 3 + 3 * 6) + 8 * 7
  # Three running averages and a window of three samples.
  assert placement.nbytes() == 6 * one
  assert [len(b) for b in placement.buffers()] == [7] * 6


def _sharded(rank, selected):
  named, same = weights(torch.bfloat16), weights(torch.bfloat16)
  sharded = averager_of(named, config(averaging_placement='sharded'), budget=10)
  whole = averager_of(same, config(), budget=10)
  for step in range(4):
    change(named, step)
    change(same, step)
    sharded.update()
    whole.update()
  for averager in (sharded, whole):
    averager.select(selected)
    averager.swap_in()
  assert_same(values(named), values(same))
  state = sharded.state_dict()
  assert state['complete'] == (rank == 0)
  if rank == 0:
    expected = whole.state_dict()['buffers']
    assert len(state['buffers']) == len(expected) == 6
    for one, other in zip(state['buffers'], expected, strict=True):
      assert [t.dtype for t in one.values()] == [
        t.dtype for t in other.values()
      ]
      assert_same(one.values(), other.values())
  # No rank may leave while its share is on its way.
  dist.barrier()


@pytest.mark.parametrize('selected', [0, 2])
def test_rank_0_saves_all_candidates_whichever_is_shown(selected):
  run_on_ranks(2, _sharded, selected)
