"""Run one rank of the workloads' DDP test; importable by spawn."""

import json
import pathlib

import numpy as np
from torch.nn.parallel import DistributedDataParallel

from lab import workloads
from weightavg import spec

RNG = np.array([11, 12])
# 30 examples in global batches of 8: the last is padded on one rank.
SIZES = {'eval_train': 30, 'validation': 30, 'test': 30}


def metrics_and_gradient():
  """Evaluate, then differentiate the mean loss of one batch."""
  workload = workloads.build_workload('click_dlrm')
  workload.sizes = SIZES
  model, _ = workload.init_model_fn(RNG)
  metrics = workload.eval_model(8, model, None, RNG, '', None, 0)
  batch = next(workload._build_input_queue(RNG, 'train', '', 8))
  logits, _ = workload.model_fn(
    model, batch, None, spec.ForwardPassMode.TRAIN, RNG, True, 0.0
  )
  loss = workload.loss_fn(batch['targets'], logits)
  (loss['summed'] / loss['n_valid_examples']).backward()
  return model, metrics


def write_metrics_and_gradient(rank, folder):
  model, metrics = metrics_and_gradient()
  assert isinstance(model, DistributedDataParallel)
  gradient = model.module.hidden1.weight.grad.tolist()
  path = pathlib.Path(folder, f'{rank}.json')
  path.write_text(json.dumps([metrics, gradient]))
