"""Batch sizes and epochs of the submissions by workload."""

import sys
import types

import pytest
from submission_runs import ALL, Host, load, point

from weightavg.optimizers import published_batch_size
from weightavg.workloads import batch_size_of, workload_name


@pytest.mark.parametrize('folder', ALL)
def test_speech_batch_sizes_are_the_optimizers_own(folder):
  sizes = (200, 224) if folder.startswith('shampoo') else (256, 256)
  names = ('librispeech_conformer', 'librispeech_deepspeech')
  assert tuple(map(load(folder).get_batch_size, names)) == sizes


def test_kaddours_preset_counts_epochs_by_the_workloads_batch_size():
  values = point('nadamw_lawa')._asdict()
  del values['averaging_horizon'], values['averaging_every']
  values['averaging_preset'] = 'kaddour2022'
  host = Host(
    'nadamw_lawa',
    types.SimpleNamespace(**values, _asdict=lambda: dict(values)),
  )
  assert host.state['averager'].sampling.every == 10


def test_a_variant_has_the_batch_size_of_its_base(monkeypatch):
  workload = types.SimpleNamespace(name='fastmri_tanh')
  with pytest.raises(ValueError, match="Unknown workload 'fastmri_tanh'"):
    batch_size_of(workload, published_batch_size)
  registry = types.ModuleType('algoperf.workloads.workloads')
  registry.get_base_workload_name = lambda name: name.partition('_')[0]
  monkeypatch.setitem(sys.modules, registry.__name__, registry)
  assert batch_size_of(workload, published_batch_size) == 32
  workload.name = 'fastmri'
  assert batch_size_of(workload, published_batch_size) == 32


def test_a_workload_without_a_name_cannot_tell_its_epochs():
  with pytest.raises(ValueError, match='Unknown workload class object'):
    workload_name(object())


def test_batch_sizes_are_the_baselines():
  assert published_batch_size('criteo1tb') == 262_144
  assert published_batch_size('imagenet_resnet_gelu') == 512


def test_a_workload_that_is_not_published_may_have_a_batch_size_of_its_own():
  workload = types.SimpleNamespace(name='of_ones_own', batch_size=24)
  assert batch_size_of(workload, published_batch_size) == 24
  workload.name = 'fastmri'
  assert batch_size_of(workload, published_batch_size) == 32
