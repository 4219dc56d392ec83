"""Facts about AlgoPerf 1.0 and its workloads, without importing it.

They hold at the commit that the `algoperf` extra names: folders as its
dataset/dataset_setup.py makes them for PyTorch, evaluation batch sizes, step
hints, time limits, variants. A test compares them with the benchmark where it
is installed.
"""

import ast
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib

from absl import app, logging
from absl import flags as absl_flags

from lab.core.errors import InputError

COMMIT = '58491177c1a0cfcf75f6b2331c512a7d6facd842'
RUNNER = 'submission_runner'
_BOOLEAN = ('DEFINE_boolean', 'DEFINE_bool')
# Packages that only some workloads need, beside those of the `algoperf` extra.
_PACKAGES = {'finewebedu_lm': ('datasets', 'transformers')}


@dataclasses.dataclass(frozen=True)
class Workload:
  """A base workload and the variants that share its data.

  Args:
    data: Folder below the data directory.
    eval_batch_size: Global, in examples.
    step_hint: Steps.
    max_runtime_sec: Time limit under external tuning, seconds.
    eval_period_sec: Seconds between two evaluations.
    variants: Suffixes of the variants' names.
    contents: Patterns below `data`, each of which must match a file.
  """

  data: str
  eval_batch_size: int
  step_hint: int
  max_runtime_sec: int
  eval_period_sec: int
  variants: tuple[str, ...] = ()
  contents: tuple[str, ...] = ()


_IMAGENET = (
  'train/*/*',
  'val/*/*',
  'imagenet_v2/matched-frequency/3.0.0/*test*',
)
_SPEECH = (
  'spm_model.vocab',
  *(
    f'{split}{part}'
    for split in (
      'train-clean-100', 'train-clean-360', 'train-other-500', 'dev-clean',
      'dev-other', 'test-clean',
    )
    for part in ('.csv', '/*_audio.npy', '/*_targets.npy')
  ),
)  # fmt: skip
BASES = {
  'cifar': Workload(
    'cifar10', 1024, 4883, 3600, 600, (), ('cifar-10-batches-py/data_batch_1',)
  ),
  'criteo1tb': Workload(
    'criteo1tb',
    8192,
    10_666,
    8915,
    356,
    ('test', 'layernorm', 'embed_init', 'resnet'),
    ('day_0_*', 'day_22_*', 'day_23_*'),
  ),
  'fastmri': Workload(
    'fastmri',
    256,
    18_094,
    2745,
    110,
    ('model_size', 'tanh', 'layernorm'),
    ('knee_singlecoil_train/*.h5', 'knee_singlecoil_val/*.h5'),
  ),
  'finewebedu_lm': Workload(
    'fineweb_edu_10B',
    256,
    72_000,
    31_967,
    2571,
    (),
    tuple(
      f'{split}/{part}'
      for split in ('train', 'val')
      for part in ('dataset_spec.pb', '*/*/*.snapshot')
    ),
  ),
  'imagenet_resnet': Workload(
    'imagenet/pytorch',
    1024,
    195_999,
    49_918,
    1996,
    ('silu', 'gelu', 'large_bn_init'),
    _IMAGENET,
  ),
  'imagenet_vit': Workload(
    'imagenet/pytorch',
    2048,
    167_999,
    64_292,
    2571,
    ('glu', 'post_ln', 'map'),
    _IMAGENET,
  ),
  'librispeech_conformer': Workload(
    'librispeech',
    256,
    76_000,
    43_680,
    1747,
    ('attention_temperature', 'layernorm', 'gelu'),
    _SPEECH,
  ),
  'librispeech_deepspeech': Workload(
    'librispeech',
    256,
    38_400,
    36_949,
    1447,
    ('tanh', 'no_resnet', 'norm_and_spec_aug'),
    _SPEECH,
  ),
  'mnist': Workload(
    'MNIST',
    10_000,
    7813,
    60,
    10,
    (),
    ('mnist/3.0.1/*train.tfrecord*', 'mnist/3.0.1/*test.tfrecord*'),
  ),
  'ogbg': Workload(
    'ogbg',
    32_768,
    52_000,
    11_303,
    452,
    ('gelu', 'silu', 'model_size'),
    tuple(
      f'ogbg_molpcba/0.1.3/*{split}.tfrecord*'
      for split in ('train', 'validation', 'test')
    ),
  ),
  'wmt': Workload(
    'wmt',
    128,
    120_000,
    16_114,
    644,
    ('post_ln', 'attention_temp', 'glu_tanh'),
    (
      'wmt_sentencepiece_model',
      'wmt14_translate/de-en/1.0.0/*test.tfrecord*',
      'wmt14_translate/de-en/1.0.0/*validation.tfrecord*',
      'wmt17_translate/de-en/1.0.0/*train.tfrecord*',
    ),
  ),
}
# Those that a submission is scored on.
SCORED = tuple(name for name in BASES if name not in ('cifar', 'mnist'))
BASE_OF = {name: name for name in BASES} | {
  f'{name}_{variant}': name
  for name, workload in BASES.items()
  for variant in workload.variants
}


# Those that a framework reads from other files than PyTorch does.
_JAX = {
  'cifar': ('cifar10', ('cifar10/3.0.2/*train.tfrecord*',)),
  **dict.fromkeys(
    ('imagenet_resnet', 'imagenet_vit'),
    (
      'imagenet/jax',
      (
        'imagenet2012/5.1.0/*train.tfrecord*',
        'imagenet2012/5.1.0/*validation.tfrecord*',
        'imagenet_v2/matched-frequency/3.0.0/*test*',
      ),
    ),
  ),
}


def _data(workload: str, framework: str) -> tuple[str, tuple[str, ...]]:
  base = BASE_OF[workload]
  if framework == 'jax' and base in _JAX:
    return _JAX[base]
  return BASES[base].data, BASES[base].contents


def data_dir(workload: str, root: str, framework: str = 'pytorch') -> str:
  """The --data_dir of a workload.

  >>> data_dir('imagenet_vit_glu', '/data')
  '/data/imagenet/pytorch'
  """
  folder, _ = _data(workload, framework)
  return os.path.join(os.path.expanduser(root), folder)


def data_flags(
  workload: str, root: str, framework: str = 'pytorch'
) -> list[str]:
  """Flags that tell submission_runner.py where a workload's data are."""
  folder = data_dir(workload, root, framework)
  flags = [f'--data_dir={folder}']
  if workload.startswith('imagenet'):
    flags.append(f'--imagenet_v2_data_dir={folder}')
  if workload.startswith('librispeech'):
    vocabulary = os.path.join(folder, 'spm_model.vocab')
    flags.append(f'--librispeech_tokenizer_vocab_path={vocabulary}')
  return flags


def check_data(workload: str, root: str, framework: str = 'pytorch') -> None:
  """Raise InputError unless the files that a workload reads exist."""
  folder = pathlib.Path(data_dir(workload, root, framework))
  base = BASE_OF[workload]
  flag = _SETUP_FLAGS.get(base, f'--{folder.name}').format(framework)
  for pattern in ('', *_data(workload, framework)[1]):
    found = next(folder.glob(pattern), None) if pattern else folder.is_dir()
    if not found:
      raise InputError(
        f'Missing data of {workload}: no {folder / pattern}. Make them by the '
        f"benchmark's dataset/dataset_setup.py {flag}, or give another "
        '--data_dir.'
      )


# Flags of dataset_setup.py that do not have the folder's name.
_SETUP_FLAGS = {
  'cifar': '--cifar --framework={}',
  'finewebedu_lm': '--finewebedu',
  'imagenet_resnet': '--imagenet --framework={}',
  'imagenet_vit': '--imagenet --framework={}',
  'mnist': '--mnist',
}


def check_packages(workload: str) -> None:
  """Raise InputError unless the packages that only a workload needs exist."""
  for package in _PACKAGES.get(BASE_OF[workload], ()):
    if importlib.util.find_spec(package) is None:
      raise InputError(
        f'Missing package {package} of {workload}. Install the benchmark with '
        "all its workloads: pip install -e '.[algoperf]'."
      )


def _flags_of(path: pathlib.Path) -> set[str]:
  """Names of the flags that a file takes, without importing it."""
  kinds = {
    node.args[0].value: getattr(node.func, 'attr', '')
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
    if isinstance(node, ast.Call)
    and getattr(node.func, 'attr', '').startswith('DEFINE_')
    and node.args
    and isinstance(node.args[0], ast.Constant)
    and isinstance(node.args[0].value, str)
  }
  booleans = [name for name, kind in kinds.items() if kind in _BOOLEAN]
  return {*kinds, *(f'no{name}' for name in booleans), *_flags_of_absl()}


def _flags_of_absl() -> set[str]:
  """Names of the flags that every program of absl takes."""
  found = absl_flags.FLAGS.flags_by_module_dict()
  own = [flag for m in (app, logging) for flag in found[m.__name__]]
  return {
    'flagfile',
    'undefok',
    *(name for flag in own for name in (flag.name, flag.short_name) if name),
    *(f'no{flag.name}' for flag in own if flag.boolean),
  }


def check_installed(flags: set[str]) -> str | None:
  """Check that the benchmark is installed and takes our flags; import nothing.

  Args:
    flags: Names of the flags that it will be given.

  Returns:
    A warning if it is another version than the one tested, or None.

  Raises:
    InputError: it is not installed, or does not take the flags.
  """
  tested = f'1.0, commit {COMMIT[:8]} of mlcommons/algorithmic-efficiency'
  for module in ('algoperf', RUNNER):
    if importlib.util.find_spec(module) is None:
      raise InputError(
        f'AlgoPerf is not installed: no module {module}. Install {tested}: '
        "pip install -e '.[algoperf]'."
      )
  spec = importlib.util.find_spec(RUNNER)
  assert spec is not None
  assert spec.origin is not None
  missing = sorted(flags - _flags_of(pathlib.Path(spec.origin)))
  try:
    version = importlib.metadata.version('algoperf')
  except importlib.metadata.PackageNotFoundError:
    version = 'unknown'
  if missing:
    raise InputError(
      f'AlgoPerf {version} is not supported: its {RUNNER} has no '
      f'--{missing[0]}. Must be {tested}, or one with its flags.'
    )
  if f'g{COMMIT[:7]}' in version or version.startswith('1.0'):
    return None
  return f'AlgoPerf {version} is installed; tested is {tested}.'
