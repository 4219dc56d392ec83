"""The sections of `make gpu`: each a process, whose rows are kept."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import time

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import collectives, cuda_tests, sections, table

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'benchmarks.gpu', *arguments],
    cwd=ROOT,
    env=os.environ | {'CUDA_VISIBLE_DEVICES': ''},
    capture_output=True,
    text=True,
    check=False,
  )


def test_without_a_gpu_one_line_says_so_and_nothing_is_written(tmp_path):
  finished = command('--output', str(tmp_path / 'gpu'))
  assert finished.returncode == 1
  assert finished.stderr == (
    'No CUDA device was found. python -m benchmarks.gpu needs one.\n'
  )
  assert not (tmp_path / 'gpu').exists()


def test_an_interpreter_without_torch_ends_in_one_line(tmp_path):
  # `make gpu` takes python3, which may have nothing but the standard library.
  finished = subprocess.run(
    [sys.executable, '-S', '-m', 'benchmarks.gpu', '--output', str(tmp_path)],
    cwd=ROOT,
    env={'PATH': os.environ['PATH']},
    capture_output=True,
    text=True,
    check=False,
  )
  assert finished.returncode == 1
  assert finished.stderr == (
    f'{sys.executable} has no package torch. python -m benchmarks.gpu needs '
    'one.\n'
  )
  assert os.listdir(tmp_path) == []


def test_a_torch_that_cannot_be_loaded_ends_in_one_line(tmp_path):
  (tmp_path / 'torch.py').write_text("raise OSError('libcudart.so is missing')")
  finished = subprocess.run(
    [sys.executable, '-m', 'benchmarks.gpu', '--output', str(tmp_path / 'gpu')],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert finished.returncode == 1
  assert finished.stderr == (
    'torch cannot be imported (libcudart.so is missing). '
    'python -m benchmarks.gpu needs one.\n'
  )


def test_an_unknown_section_is_named():
  finished = command('averages', 'training')
  assert finished.returncode == 1
  assert finished.stderr.startswith("Invalid section='training'. Must be one ")


def script(name, code, limit=30.0):
  """A section that runs some Python; `row` adds a row."""
  prelude = textwrap.dedent("""
    import json, sys, time
    def row(name, **values):
      with open(sys.argv[1], 'a') as file:
        file.write(json.dumps([name, values]) + '\\n')
  """)
  code = prelude + textwrap.dedent(code)
  return sections.Section(name, limit, [sys.executable, '-c', code])


def test_sections_survive_each_other_and_keep_what_they_measured(tmp_path):
  everything = [
    script('fails', "row('first', ms=1.0); raise ValueError('of no use')"),
    script('hangs', "row('first', ms=2.0); time.sleep(60)", limit=6.0),
    script(
      'skips', f"print('no such model'); sys.exit({sections.SKIPPED_CODE})"
    ),
    script('dies', 'import os; os.abort()'),
    script('works', "row('first', ms=3.0); row('second', ms=4.0)"),
  ]
  results = gpu.measure(everything, time.monotonic() + 100, tmp_path)
  assert json.loads((tmp_path / 'gpu.json').read_text()) == results
  assert {name: entry['status'] for name, entry in results.items()} == {
    'fails': 'failed',
    'hangs': 'out of time',
    'skips': 'skipped',
    'dies': 'failed',
    'works': 'complete',
  }
  assert results['fails']['rows'] == {'first': {'ms': 1.0}}
  assert results['fails']['message'].endswith('ValueError: of no use\n')
  assert results['hangs']['rows'] == {'first': {'ms': 2.0}}
  assert results['skips']['message'] == 'no such model'
  assert results['works']['rows'] == {
    'first': {'ms': 3.0},
    'second': {'ms': 4.0},
  }


def has_ended(pid):
  """True without the process, or if only its exit status is left."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return True
  return stat.rpartition(')')[2].split()[0] in 'ZX'


@pytest.mark.slow
def test_an_ended_section_leaves_no_process_behind(tmp_path):
  """torchrun starts each rank in a new session."""
  pids = tmp_path / 'pids'
  rank = (
    f'import os, time; print(os.getpid(), os.getppid(), '
    f'file=open({str(pids)!r}, "w"), flush=True); time.sleep(600)'
  )
  agent = (
    'import subprocess, sys; subprocess.run([sys.executable, "-c", '
    f'{rank!r}], start_new_session=True)'
  )
  code = f"""
    import os, subprocess
    agent = subprocess.Popen([sys.executable, '-c', {agent!r}])
    while not os.path.exists({str(pids)!r}) or not open({str(pids)!r}).read():
      time.sleep(0.1)
    row('started')
    time.sleep(600)
  """
  entry = sections.run(script('hangs', code, 20.0), 8.0, lambda entry: None)
  assert entry['status'] == 'out of time'
  assert entry['rows'] == {'started': {}}
  for pid in map(int, pids.read_text().split()):
    end = time.monotonic() + 60
    while not has_ended(pid) and time.monotonic() < end:
      time.sleep(0.1)
    assert has_ended(pid)


@pytest.mark.parametrize(
  ('code', 'limit', 'message'),
  [
    (
      'import os, sys; print(os.environ["MASTER_ADDR"]); sys.exit(3)',
      60.0,
      'ended with 1',
    ),
    pytest.param(
      'import time; time.sleep(600)',
      5.0,
      r'did not end in 5 s',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_ranks_that_fail_or_hang_are_reported(
  tmp_path, monkeypatch, capsys, code, limit, message
):
  (tmp_path / 'a_rank.py').write_text(code)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  with pytest.raises(RuntimeError, match=f'a_rank {message}'):
    collectives.torchrun(1, 'a_rank', timeout=limit)
  if message.startswith('ended'):
    # An address: the machine's own name may have none.
    assert '127.0.0.1' in capsys.readouterr().err


def test_results_of_another_machine_say_so(tmp_path):
  def environment(torch_version):
    return script(
      'environment',
      f"""
      row('machine', device='A GPU')
      row('packages', torch={torch_version!r})
      """,
    )

  deadline = time.monotonic() + 100
  measured = script('shampoo', "row('x', ms=1)")
  gpu.measure([environment('2.9'), measured], deadline, tmp_path)
  assert 'Measured on' not in (tmp_path / 'gpu.md').read_text()
  results = gpu.measure([environment('2.13')], deadline, tmp_path)
  assert results['shampoo']['machine'] == 'A GPU, torch 2.9'
  page = (tmp_path / 'gpu.md').read_text()
  assert page.endswith('Measured on A GPU, torch 2.9.\n')


def test_files_with_tests_of_a_gpu_are_found():
  paths = cuda_tests.marked()
  assert 'tests/weightavg/test_placement.py' in paths
  assert 'tests/weightavg/test_schemes.py' not in paths


def test_results_are_written_as_they_come(tmp_path):
  seen = []
  code = "row('first', ms=1.0); time.sleep(2); row('second', ms=2.0)"
  sections.run(script('slow', code), 100, seen.append)
  assert seen[0]['status'] == 'running'
  assert seen[0]['rows'] == {'first': {'ms': 1.0}}


def test_sections_measured_again_replace_their_entries_alone(tmp_path):
  deadline = time.monotonic() + 100
  first = [script('a', "row('x', ms=1)"), script('b', "row('x', ms=2)")]
  gpu.measure(first, deadline, tmp_path)
  results = gpu.measure([script('b', "row('x', ms=3)")], deadline, tmp_path)
  assert results['a']['rows'] == {'x': {'ms': 1}}
  assert results['b']['rows'] == {'x': {'ms': 3}}


def test_no_section_starts_when_no_time_is_left(tmp_path):
  started = tmp_path / 'started'
  code = f'open({str(started)!r}, "w")'
  entry = sections.run(script('late', code), 4.0, lambda entry: None)
  assert entry['status'] == 'not run'
  assert not started.exists()


def test_a_torn_last_line_is_left(tmp_path):
  path = tmp_path / 'rows'
  path.write_text('["whole", {"ms": 1.0}]\n["torn", {"ms"')
  assert sections.read_rows(path) == {'whole': {'ms': 1.0}}


def test_every_section_can_be_run():
  for name in sections.LIMITS:
    assert name in table.TITLES
    if not name.startswith('train_'):
      assert importlib.util.find_spec(f'benchmarks.gpu.{name}')


def test_tables_join_rows_that_share_a_column_and_say_how_they_ended():
  entry = {
    'status': 'out of time',
    'message': 'Ended after 60 s.',
    'rows': {
      'a': {'step_ms': 1.23456, 'waits': {'y.py:4': 1, 'x.py:3': 2}},
      'b': {'waits': {}, 'ratio': 12},
      'c': {'outcome': True},
    },
  }
  assert table.page({'shampoo': entry}) == textwrap.dedent("""\
    ### Shampoo in float32 and TF32

    | | step ms | waits | ratio |
    |---|---|---|---|
    | a | 1.235 | 3 |  |
    | b |  | 0 | 12 |

    Waits are asked for by `x.py:3`, `y.py:4`.

    | | outcome |
    |---|---|
    | c | yes |

    **out of time**: `Ended after 60 s.`
    """)
