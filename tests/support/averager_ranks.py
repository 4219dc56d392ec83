"""Averages of sharded models on two gloo ranks.

Each scenario is a function of the folder that the ranks share; all ranks must
end it without an error.
"""

import functools
import traceback

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
  get_model_state_dict,
  set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
  ColwiseParallel,
  RowwiseParallel,
  parallelize_module,
)

from weightavg import Auto, Ema, Lawa, Polynomial
from weightavg.pytorch import Averager, NadamW, distributed_checkpoint

SCHEMES = {
  'ema': Ema(0.5),
  'lawa': Lawa(window=3),
  'polynomial': Polynomial(power=2.0),
}
STEPS = 6


def make():
  """Odd sizes, so that one rank holds more rows than the other, or none."""
  torch.manual_seed(0)
  return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def sharded(mesh=None):
  model = make()
  mesh = mesh or init_device_mesh('cpu', (2,))
  fully_shard(model[0], mesh=mesh)
  fully_shard(model, mesh=mesh)
  return model


def tensor_parallel():
  mesh = init_device_mesh('cpu', (2,))
  plan = {'0': ColwiseParallel(), '2': RowwiseParallel()}
  torch.manual_seed(0)
  model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
  return parallelize_module(model, mesh, plan)


def step(model, optimizer, number):
  generator = torch.Generator().manual_seed(number)
  model(torch.randn(4, 5, generator=generator)).square().mean().backward()
  optimizer.step()
  optimizer.zero_grad()


def whole(tensor):
  tensor = tensor.detach()
  found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
  return found.clone()


def weights(model):
  for module in model.modules():
    if hasattr(module, 'reshard'):
      module.reshard()
  return [whole(p) for p in model.parameters()]


def pieces(model):
  parameters = [p.detach() for p in model.parameters()]
  return [p.to_local() for p in parameters if isinstance(p, DTensor)]


def expected(scheme, samples):
  ws = scheme.resolved(lambda _: 1).weights(len(samples))
  return [
    sum(w * s.double() for w, s in zip(ws, tensors, strict=True))
    for tensors in zip(*samples, strict=True)
  ]


def assert_close(averages, sums):
  # Averages of six samples in float32 against float64.
  for average, value in zip(averages, sums, strict=True):
    torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-6)


def trained(model, scheme, **options):
  optimizer = NadamW(model.parameters(), lr=0.1)
  averager = Averager(model, scheme, every=1, **options)
  samples = []
  for number in range(STEPS):
    step(model, optimizer, number)
    averager.update()
    samples.append(weights(model))
  return optimizer, averager, samples


def error_of(call):
  try:
    call()
  except (ValueError, RuntimeError) as error:
    return str(error)
  raise AssertionError('no error')


def check_scheme(model, scheme, **options):
  """Evaluation sees the explicit weighted sum, training its raw weights."""
  inputs = torch.randn(3, 5, generator=torch.Generator().manual_seed(99))
  _, averager, samples = trained(model, scheme, **options)
  before = [p.clone() for p in pieces(model)]
  with averager.evaluating():
    # A forward pass before and one inside: FSDP2 keeps whole weights of the
    # root between passes.
    shown = weights(model)
    output = whole(model(inputs))
  assert_close(shown, expected(scheme, samples))
  reference = make()
  if reference[0].weight.shape == shown[0].shape:
    for p, value in zip(reference.parameters(), shown, strict=True):
      p.data.copy_(value)
    torch.testing.assert_close(output, reference(inputs), rtol=1e-5, atol=1e-5)
  weights(model)  # reshards
  assert all(map(torch.equal, before, pieces(model)))


def fsdp2(folder):
  for scheme in SCHEMES.values():
    check_scheme(sharded(), scheme)


def exchange(folder):
  """The storages of DTensors cannot be exchanged: raw weights were shown."""
  for make_model in (sharded, tensor_parallel):
    check_scheme(make_model(), Ema(0.5), swap='exchange')


def writes_while_shown(folder):
  """Steps and loads are refused; a load of the same values is none."""
  model = sharded()
  optimizer, averager, _ = trained(model, Ema(0.5))
  raw = {k: v.clone() for k, v in get_model_state_dict(model).items()}
  with averager.evaluating():
    shown = weights(model)
    found = error_of(lambda: step(model, optimizer, STEPS))
    assert 'before a step of the optimizer' in found
    assert 'is loaded' in error_of(lambda: set_model_state_dict(model, raw))
    set_model_state_dict(model, get_model_state_dict(model))
    assert all(map(torch.equal, shown, weights(model)))


def hsdp(folder):
  mesh = init_device_mesh('cpu', (2, 1), mesh_dim_names=('replicate', 'shard'))
  check_scheme(sharded(mesh), Ema(0.5))


def tensor_parallelism(folder):
  check_scheme(tensor_parallel(), Ema(0.5))


def evaluations_leave_training_alone(folder):
  """The root's whole weights must not survive a swap, in either direction."""
  results = []
  for evaluates in (False, True):
    model = sharded()
    optimizer = NadamW(model.parameters(), lr=0.1)
    averager = Averager(model, Ema(0.5))
    for number in range(STEPS):
      step(model, optimizer, number)
      if evaluates:
        with torch.no_grad():
          raw = whole(model(torch.ones(2, 5)))
          with averager.evaluating():
            shown = whole(model(torch.ones(2, 5)))
          back = whole(model(torch.ones(2, 5)))
        assert torch.equal(raw, back)
        assert number == 0 or not torch.equal(raw, shown)
      averager.update()
    results.append(weights(model))
  assert all(map(torch.equal, *results))


def training_at_the_average(folder):
  """Sharded and whole models make the same steps, evaluated in between."""
  seen = []
  for model in (sharded(), make()):
    optimizer = NadamW(model.parameters(), lr=0.1, betas=(0.0, 0.9))
    averager = Averager(model, Polynomial(2.0), interpolation=0.9)
    values = []
    for number in range(STEPS):
      generator = torch.Generator().manual_seed(number)
      inputs = torch.randn(4, 5, generator=generator)
      model(inputs).square().mean().backward()
      averager.before_step(optimizer)
      optimizer.step()
      optimizer.zero_grad()
      averager.update()
      if number == 2:
        state = averager.state_dict()
        averager.load_state_dict(state)
      with averager.evaluating():
        values += weights(model)
        with torch.no_grad():
          values.append(whole(model(inputs)))
    seen.append(values + weights(model))
    with torch.no_grad():
      next(model.parameters()).mul_(2.0)
    message = error_of(functools.partial(averager.before_step, optimizer))
    assert 'were changed since the last update()' in message
  for value, other in zip(*seen, strict=True):
    # The same steps in float32; gradients are summed in another order.
    torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def nothing_is_gathered(folder):
  model = sharded()
  _, averager, _ = trained(model, Ema(0.5))
  with CommDebugMode() as comm:
    averager.update(finite=True)
    averager.swap_in()
    averager.swap_out()
  assert comm.get_total_counts() == 0, comm.get_comm_counts()


def ranks_skip_alike(folder):
  model = sharded()
  _, averager, _ = trained(model, Ema(0.5))
  with averager.evaluating():
    before = weights(model)
  if dist.get_rank() == 1:
    with torch.no_grad():
      next(model.parameters()).to_local().fill_(float('nan'))
  averager.update()
  assert averager.skipped == 1
  assert averager.samples == STEPS
  with averager.evaluating():
    assert all(map(torch.equal, before, weights(model)))


def choosing(folder):
  model = sharded()
  averager = Averager(model, Auto('raw, ema 0.5, lawa 0.5'), total_steps=STEPS)
  optimizer = NadamW(model.parameters(), lr=0.1)
  for number in range(STEPS):
    step(model, optimizer, number)
    averager.update()
  seen = []
  for which in range(3):
    with averager.evaluating(which):
      seen.append(weights(model))
  assert not torch.equal(seen[0][0], seen[1][0])
  assert averager.choose([2.0, 1.0, 3.0]) == 'ema 0.5'
  with averager.evaluating():
    assert all(map(torch.equal, seen[1], weights(model)))


def save(folder):
  """Save for `load` here and for one rank; during an evaluation, too."""
  for name, scheme in SCHEMES.items():
    model = sharded()
    _, averager, samples = trained(model, scheme)
    # Parts of the reference for whoever loads.
    if dist.get_rank() == 0:
      torch.save(expected(scheme, samples), f'{folder}/{name}.pt')
      torch.save(samples[-1], f'{folder}/{name}_raw.pt')
    state = {'averager': averager.state_dict()}
    dcp.save(state, checkpoint_id=f'{folder}/{name}')
    with averager.evaluating():
      state = {'averager': averager.state_dict()}
      dcp.async_save(state, checkpoint_id=f'{folder}/{name}_shown').result()


def check_loaded(folder, make_model):
  for name, scheme in SCHEMES.items():
    for suffix in ('', '_shown'):
      model = make_model()
      averager = Averager(model, scheme, every=1)
      distributed_checkpoint.load(averager, f'{folder}/{name}{suffix}')
      assert averager.samples == averager.step == STEPS
      assert averager.swapped == bool(suffix)
      averager.swap_in()
      shown = weights(model)
      assert_close(shown, torch.load(f'{folder}/{name}.pt'))
      averager.swap_out()
      if suffix:
        raw = torch.load(f'{folder}/{name}_raw.pt')
        assert all(map(torch.equal, weights(model), raw))


def load(folder):
  check_loaded(folder, sharded)


def state_dicts(folder):
  """The averaged state dict has the model's DTensors; a plain state loads."""
  model = sharded()
  _, averager, samples = trained(model, Ema(0.5))
  found = averager.averaged_state_dict()
  for (name, parameter), value in zip(
    model.named_parameters(), expected(Ema(0.5), samples), strict=True
  ):
    assert found[name].placements == parameter.placements
    assert_close([whole(found[name])], [value])
  plain = make()
  alone = Averager(plain, Ema(0.5))
  alone.load_state_dict(averager.state_dict())
  with alone.evaluating():
    assert_close(weights(plain), expected(Ema(0.5), samples))
  again = Averager(sharded(), Ema(0.5))
  again.load_state_dict(alone.state_dict())
  assert again.samples == STEPS


def copies(folder):
  """An average goes to another model, whichever of the two is sharded."""
  model = sharded()
  _, averager, _ = trained(model, Ema(0.5))
  with averager.evaluating():
    expected_weights = weights(model)
  other, plain = sharded(), make()
  averager.copy_to(other)
  averager.copy_to(plain)
  assert all(map(torch.equal, weights(other), expected_weights))
  assert all(map(torch.equal, weights(plain), expected_weights))
  alone = Averager(plain, Ema(0.5))
  alone.update()
  again = sharded()
  alone.copy_to(again)
  assert all(map(torch.equal, weights(again), expected_weights))


def refused(folder):
  model = sharded()
  assert 'Invalid placement' in error_of(
    lambda: Averager(model, Ema(0.5), placement='sharded')
  )
  flat = FullyShardedDataParallel(
    make(), use_orig_params=True, device_id=torch.device('cpu')
  )
  assert 'FSDP1' in error_of(lambda: Averager(flat, Ema(0.5)))
  early = make()
  averager = Averager(early, Ema(0.5))
  fully_shard(early, mesh=init_device_mesh('cpu', (2,)))
  assert 'Build a new Averager' in error_of(averager.update)


SCENARIOS = (
  fsdp2,
  exchange,
  writes_while_shown,
  hsdp,
  tensor_parallelism,
  evaluations_leave_training_alone,
  training_at_the_average,
  nothing_is_gathered,
  ranks_skip_alike,
  choosing,
  save,
  load,
  state_dicts,
  copies,
  refused,
)


def run_scenarios(rank, folder, names):
  """Write each scenario's errors to <name>.<rank>, empty where it passed."""
  for name in names:
    error = ''
    try:
      globals()[name](folder)
    except Exception as raised:
      error = ''.join(traceback.format_exception(raised))
    with open(f'{folder}/{name}.{rank}', 'w') as file:
      file.write(error)
    if error:
      raise RuntimeError(f'{name} failed on rank {rank}: {error}')
    dist.barrier()
