"""Data of the workloads: functions of a seed and an index; splits, slices."""

import pytest
import torch
from workload_runs import RNG, assert_same_batch, built, each_workload, queue_of

from lab import workloads
from lab.workloads import (
  base,
  click_dlrm,
  denoise_unet,
  glyph_resnet,
  stdlib_lm,
  stream,
)
from weightavg import spec

TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL


@each_workload
def test_validation_split_has_ten_thousand_examples_or_tokens(name):
  workload = built(name)
  targets_of_split = workload._split('validation')['targets']
  assert len(targets_of_split) == workload.num_validation_examples
  assert targets_of_split.numel() >= 10_000


@each_workload
def test_training_stream_is_a_function_of_seed_and_index(name):
  workload = built(name)
  queue = queue_of(workload)
  batches = [next(queue) for _ in range(4)]
  again, skipping = queue_of(workload), queue_of(workload)
  for batch in batches:
    assert_same_batch(batch, next(again))
  skipping.skip(1)
  skipping.skip(2)
  assert_same_batch(batches[3], next(skipping))
  other = next(queue_of(workload, rng=RNG + 1))
  for different in (batches[1], other):
    assert not torch.equal(batches[0]['inputs'], different['inputs'])


def repeating(steps=6, size=4, epochs=2):
  """A workload that passes several times over three batches of four."""
  workload = workloads.build_workload('click_dlrm')
  workload.steps, workload.batch_size, workload.epochs = steps, size, epochs
  return workload


def test_repeated_data_come_once_in_each_pass_in_another_order():
  workload = repeating()
  assert workload.num_train_examples == 12
  queue = queue_of(workload, batch_size=4)
  passes = [[next(queue)['inputs'] for _ in range(3)] for _ in range(3)]
  examples = [sorted(torch.cat(p).tolist()) for p in passes]
  assert examples[0] == examples[1] == examples[2]
  assert len({tuple(e) for e in examples[0]}) == 12
  assert not torch.equal(torch.cat(passes[0]), torch.cat(passes[1]))
  assert not torch.equal(torch.cat(passes[1]), torch.cat(passes[2]))
  endless = queue_of(built('click_dlrm'), batch_size=4)
  first = torch.cat([next(endless)['inputs'] for _ in range(3)])
  assert sorted(first.tolist()) == examples[0]


def test_repeated_data_are_skipped_and_sliced_as_endless_ones(monkeypatch):
  batches, skipping = (
    queue_of(repeating(), batch_size=4),
    queue_of(repeating(), batch_size=4),
  )
  wanted = [next(batches) for _ in range(5)][4]
  skipping.skip(1)
  skipping.skip(3)
  assert_same_batch(wanted, next(skipping))
  with pytest.raises(ValueError, match='n=-1'):
    skipping.skip(-1)
  whole, parts = next(queue_of(repeating(), batch_size=4)), []
  for rank in range(2):
    monkeypatch.setattr(base, 'rank_and_world', lambda rank=rank: (rank, 2))
    parts.append(next(queue_of(repeating(), batch_size=4)))
  joined = {key: torch.cat([part[key] for part in parts]) for key in whole}
  assert_same_batch(whole, joined)


@each_workload
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_rank_slices_make_up_the_global_batch(name, split, monkeypatch):
  workload = built(name)
  whole = next(queue_of(workload, split, 6))
  parts = []
  for rank in range(3):
    monkeypatch.setattr(base, 'rank_and_world', lambda rank=rank: (rank, 3))
    parts.append(next(queue_of(workload, split, 6)))
  joined = {key: torch.cat([part[key] for part in parts]) for key in whole}
  assert_same_batch(whole, joined)


def test_batch_that_does_not_divide_is_refused(monkeypatch):
  monkeypatch.setattr(base, 'rank_and_world', lambda: (0, 2))
  with pytest.raises(ValueError, match='global_batch_size=5'):
    queue_of(built('click_dlrm'), batch_size=5)


def test_wrong_split_and_negative_skip_are_refused():
  workload = built('click_dlrm')
  with pytest.raises(ValueError, match="split='valid'"):
    queue_of(workload, 'valid')
  for split in ('train', 'validation'):
    with pytest.raises(ValueError, match='n=-1'):
      queue_of(workload, split).skip(-1)


@each_workload
def test_validation_split_is_the_same_in_every_build(name):
  workload = built(name)
  first = next(queue_of(workload, 'validation', 16))
  fingerprint = workload.data_fingerprint()
  for cached in (
    click_dlrm.teacher,
    denoise_unet.scene,
    glyph_resnet.glyphs,
    stdlib_lm.corpus,
  ):
    cached.cache_clear()
  again = workloads.build_workload(name)
  assert_same_batch(first, next(queue_of(again, 'validation', 16, RNG + 1)))
  assert again.data_fingerprint() == fingerprint


def test_language_model_splits_share_no_file():
  shares = {'train': 0, 'validation': 0, 'test': 0}
  for i in range(2000):
    shares[stdlib_lm.split_of(f'module_{i}.py')] += 1
  # Binomial with mean 80: five standard deviations are 44.
  assert 36 < shares['validation'] < 124
  assert 36 < shares['test'] < 124
  corpus = stdlib_lm.corpus()
  assert len(corpus['train']) > 20 * 10_000
  window = corpus['validation'][1000:1200].tobytes()
  assert window not in corpus['train'].tobytes()


def test_evaluation_stream_pads_with_weight_zero_and_repeats():
  arrays = {'inputs': torch.arange(5.0), 'targets': torch.arange(5)}
  queue = stream.EvalStream(arrays, 4, torch.device('cpu'))
  first, second, third = next(queue), next(queue), next(queue)
  assert first['weights'].tolist() == [1, 1, 1, 1]
  assert second['inputs'].tolist() == [4, 4, 4, 4]
  assert second['weights'].tolist() == [1, 0, 0, 0]
  assert_same_batch(first, third)
  queue.skip(2)
  assert_same_batch(second, next(queue))
