"""Compare compiled train steps by the compiler's own cost analysis."""

import pytest
from jax_support import import_jax

from weightavg import Ema

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')

# As many leaves of one size as a network has: of a single large one XLA fuses
# what it would otherwise keep.
SHAPES = {f'layer{number}': (64, 96) for number in range(10)}
BYTES = 10 * 4 * 64 * 96
WINDOW = 5


def costs(average):
  """Costs of Adam with an average behind it."""
  optimizer = optax.adam(1e-3)
  if average is not None:
    optimizer = optax.chain(optimizer, average)
  return costs_of(optimizer)


def costs_of(optimizer):
  """Bytes accessed, of temporaries and of arguments, in sizes of the model."""

  def step(params, state, gradients):
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  compiled = (
    jax.jit(step, donate_argnums=(0, 1))
    .lower(params, optimizer.init(params), params)
    .compile()
  )
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  sizes = (
    cost['bytes accessed'],
    memory.temp_size_in_bytes,
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes - memory.alias_size_in_bytes,
  )
  return [size / BYTES for size in sizes]


@pytest.mark.parametrize('every', [1, 5])
@pytest.mark.parametrize('checked', [False, True])
@pytest.mark.parametrize(
  ('scheme', 'stored', 'accessed'),
  [
    # The sample and the average are read, the average is written.
    ('ema', 1, 3),
    # The sample is read, and written into its place in the window.
    ('lawa', WINDOW, 2),
  ],
)
def test_an_average_costs_its_own_bytes(
  scheme, stored, accessed, checked, every
):
  """No temporary, no copy of what is donated; the check is one more read."""
  make = {
    'ema': lambda **kwargs: wj.ema_weights(0.9, **kwargs),
    'lawa': lambda **kwargs: wj.lawa_weights(WINDOW, **kwargs),
  }[scheme]
  plain = costs(None)
  averaged = costs(make(every=every, skip_nonfinite=checked))
  added = [a - b for a, b in zip(averaged, plain, strict=True)]
  # 5 % of the model's bytes for counters, scalars and partial sums.
  assert added[0] == pytest.approx(accessed + checked, abs=0.05)
  assert added[1:] == pytest.approx([0, stored, 0], abs=0.05)


@pytest.mark.parametrize('accumulator_dtype', [None, jnp.float32])
def test_training_at_an_average_stores_z_in_place_of_the_momentum(
  accumulator_dtype,
):
  """Arguments are those of NadamW with momentum; a stored x is one model more.

  Two temporaries of the model's size at most: the iterate, which is looked at
  before it is written, and the average.
  """
  plain = costs_of(wj.nadamw(1e-3))
  optimizer = wj.primal_average(
    wj.nadamw(1e-3, b1=0.0), Ema(0.9), accumulator_dtype=accumulator_dtype
  )
  accessed, temporary, stored, added = costs_of(optimizer)
  assert stored - plain[2] == pytest.approx(
    0 if accumulator_dtype is None else 1, abs=0.05
  )
  assert added == pytest.approx(0, abs=0.05)
  assert temporary < 2.05
  # Of both branches of the choice to leave a step out: 13 without one.
  assert accessed < (22 if accumulator_dtype is None else 24)
