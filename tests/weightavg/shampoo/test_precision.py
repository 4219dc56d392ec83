"""Full float32 products inside a block; the host's setting after it."""

import threading

import fork_server
import pytest
import torch

from weightavg.pytorch.shampoo import DistributedShampoo
from weightavg.pytorch.shampoo.inverse_roots import half_roots
from weightavg.pytorch.shampoo.precision import full_float32_products
from weightavg.pytorch.shampoo.symmetric_pairs import new_pair, root_half


@pytest.fixture(params=['highest', 'high', 'medium'])
def host(request):
  torch.set_float32_matmul_precision(request.param)
  yield request.param
  torch.set_float32_matmul_precision('highest')


def test_the_block_is_exact_and_the_hosts_setting_returns(host):
  with full_float32_products():
    assert torch.get_float32_matmul_precision() == 'highest'
  assert torch.get_float32_matmul_precision() == host


def test_the_hosts_setting_returns_after_an_exception(host):
  with pytest.raises(KeyError), full_float32_products():
    raise KeyError
  assert torch.get_float32_matmul_precision() == host


def test_blocks_nest(host):
  with full_float32_products():
    with full_float32_products():
      pass
    assert torch.get_float32_matmul_precision() == 'highest'
  assert torch.get_float32_matmul_precision() == host


def test_blocks_overlap_in_threads(host):
  """The first to enter leaves first, while the second is still inside."""
  first_in, second_in, first_out = (threading.Event() for _ in range(3))
  seen = []

  def first():
    with full_float32_products():
      first_in.set()
      second_in.wait()
    first_out.set()

  def second():
    first_in.wait()
    with full_float32_products():
      second_in.set()
      first_out.wait()
      seen.append(torch.get_float32_matmul_precision())

  threads = [threading.Thread(target=f) for f in (first, second)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert seen == ['highest']
  assert torch.get_float32_matmul_precision() == host


HAS_SETTINGS_BY_BACKEND = hasattr(torch.backends.cuda.matmul, 'fp32_precision')


def _set_by_backend(connection, host):
  """Products within a host's settings; sends what settings are afterwards."""
  backends = torch.backends
  matmul = backends.cuda.matmul
  levels = (
    *(backends, backends.cudnn, backends.mkldnn, matmul),
    *(backends.mkldnn.matmul, backends.cudnn.conv),
  )
  exec(host)
  before = [level.fp32_precision for level in levels]
  assert 'bf16' in before or 'tf32' in before[:-1]
  with full_float32_products():
    for level in (matmul, backends.mkldnn.matmul):
      assert level.fp32_precision in ('ieee', 'none')
  assert [level.fp32_precision for level in levels] == before
  backends.fp32_precision = 'ieee'
  connection.send(
    [matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision]
  )


@pytest.mark.skipif(
  not HAS_SETTINGS_BY_BACKEND, reason='this torch has no settings by backend'
)
@pytest.mark.parametrize(
  ('host', 'later'),
  [
    ("torch.set_float32_matmul_precision('medium')", 'tf32 bf16'),
    ("matmul.fp32_precision = 'tf32'", 'tf32 ieee'),
    # Both kinds of products follow what they have no value of their own for.
    ("backends.fp32_precision = 'tf32'", 'ieee ieee'),
    ("backends.mkldnn.fp32_precision = 'bf16'", 'ieee ieee'),
  ],
)
def test_a_setting_by_backend_returns_and_follows_the_host(host, later):
  """`later` is what a host that sets 'ieee' for all finds afterwards."""
  # torch refuses to mix both interfaces in one process, so each has its own.
  context = fork_server.start()
  receiver, sender = context.Pipe(duplex=False)
  child = context.Process(target=_set_by_backend, args=(sender, host))
  child.start()
  sender.close()
  assert receiver.recv() == later.split()
  child.join()
  assert child.exitcode == 0


@pytest.mark.filterwarnings('ignore:.*torch.jit.script:DeprecationWarning')
# It leaves torch's settings to the interpreter, and says so.
@pytest.mark.filterwarnings('ignore:Dynamo does not know how to trace')
def test_the_setting_holds_and_returns_under_a_compiler(host):
  seen = []

  def product(matrix, fails):
    with full_float32_products():
      seen.append(torch.get_float32_matmul_precision())
      if fails:
        raise KeyError
      return matrix @ matrix

  compiled = torch.compile(product, backend='eager')
  for _ in range(2):
    compiled(torch.eye(2), False)
    assert torch.get_float32_matmul_precision() == host
  with pytest.raises(KeyError):
    compiled(torch.eye(2), True)
  assert torch.get_float32_matmul_precision() == host
  assert set(seen) == {'highest'}


class SettingOfPanels(torch.overrides.TorchFunctionMode):
  """Note the setting beside each product that adds to a panel of tiles."""

  def __init__(self):
    super().__init__()
    self.building, self.others = set(), set()

  def __torch_function__(self, func, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    if func is torch.Tensor.addmm_:
      # A new root replaces the old one (beta = 0), other products add.
      seen = self.others if kwargs.get('beta', 1) else self.building
      seen.add(torch.get_float32_matmul_precision())
    return func(*args, **kwargs)


def test_roots_alone_are_built_in_full_float32(host):
  # 130 rows are more than one tile, so all three kinds of products have panels.
  weight = torch.nn.Parameter(torch.zeros(130, 2))
  optimizer = DistributedShampoo([weight], lr=0.1, precondition_frequency=1)
  weight.grad = torch.randn(130, 2)
  with SettingOfPanels() as settings:
    optimizer.step()
  assert settings.building == {'highest'}
  assert settings.others == {host}
  assert torch.get_float32_matmul_precision() == host


class FailingRoots(torch.overrides.TorchFunctionMode):
  """Raise at the first product that builds a root, as a device may."""

  def __torch_function__(self, func, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    if func is torch.Tensor.addmm_ and not kwargs.get('beta', 1):
      raise RuntimeError('operation not permitted when capturing')
    return func(*args, **kwargs)


def test_the_hosts_setting_returns_after_a_step_that_fails(host):
  weight = torch.nn.Parameter(torch.zeros(130, 2))
  optimizer = DistributedShampoo([weight], lr=0.1, precondition_frequency=1)
  weight.grad = torch.randn(130, 2)
  with FailingRoots(), pytest.raises(RuntimeError, match='when capturing'):
    optimizer.step()
  assert torch.get_float32_matmul_precision() == host


@pytest.mark.cuda
def test_a_root_on_a_gpu_is_as_exact_as_without_tf32():
  if not torch.cuda.is_available():
    pytest.skip('no CUDA device')
  generator = torch.Generator().manual_seed(0)
  rows = torch.randn(256, 1024, generator=generator, dtype=torch.float64)
  rows *= torch.logspace(0, -1.5, 256, dtype=torch.float64)[:, None]
  matrix = rows @ rows.mT / 1024
  errors = {}
  torch.set_float32_matmul_precision('high')
  try:
    halves = half_roots(matrix[None].float().cuda(), 1 / 4, 1e-8)[0]
    expected = halves[0].cpu().double() @ halves[0].cpu().double().mT
    for name in ('host', 'full'):
      pair = new_pair(1, 256, torch.float32, torch.device('cuda'))
      if name == 'full':
        with full_float32_products():
          root_half(pair).add_gram(halves, keep=0.0, add=1.0)
      else:
        root_half(pair).add_gram(halves, keep=0.0, add=1.0)
      root = root_half(pair).unpack()[0].cpu().double()
      errors[name] = float((root - expected).norm() / expected.norm())
    assert torch.get_float32_matmul_precision() == 'high'
  finally:
    torch.set_float32_matmul_precision('highest')
  # TF32 has 11 significant bits: about 2^-12 = 2e-4 for each operand. float32
  # has 24, and 256 additions.
  assert errors['host'] > 1e-4
  assert errors['full'] < 1e-6
