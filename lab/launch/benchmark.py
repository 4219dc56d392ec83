"""What of AlgoPerf's PyTorch workloads has to be known before one is started.

Facts of the benchmark at the commit that the `algoperf` extra names: folders as
its datasets/dataset_setup.py makes them, evaluation batch sizes, variants.
"""

import ast
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib

from lab.core.errors import InputError

COMMIT = '2c90454'
RUNNER = 'submission_runner'


@dataclasses.dataclass(frozen=True)
class Workload:
  """A base workload and the variants that share its data.

  Args:
    data: Folder below the data directory.
    eval_batch_size: Global, in examples.
    variants: Suffixes of the variants' names.
    contents: What must lie in the folder.
  """

  data: str
  eval_batch_size: int
  variants: tuple[str, ...] = ()
  contents: tuple[str, ...] = ()


_IMAGENET = ('train', 'val', 'imagenet_v2')
_SPEECH = ('spm_model.vocab', 'train-clean-100.csv')
BASES = {
  'cifar': Workload('cifar10', 1024),
  'criteo1tb': Workload(
    'criteo1tb', 8192, ('test', 'layernorm', 'embed_init', 'resnet')
  ),
  'fastmri': Workload(
    'fastmri',
    256,
    ('model_size', 'tanh', 'layernorm'),
    ('knee_singlecoil_train', 'knee_singlecoil_val'),
  ),
  'imagenet_resnet': Workload(
    'imagenet/pytorch', 1024, ('silu', 'gelu', 'large_bn_init'), _IMAGENET
  ),
  'imagenet_vit': Workload(
    'imagenet/pytorch', 2048, ('glu', 'post_ln', 'map'), _IMAGENET
  ),
  'librispeech_conformer': Workload(
    'librispeech', 256, ('attention_temperature', 'layernorm', 'gelu'), _SPEECH
  ),
  'librispeech_deepspeech': Workload(
    'librispeech', 128, ('tanh', 'no_resnet', 'norm_and_spec_aug'), _SPEECH
  ),
  'mnist': Workload('MNIST', 10_000),
  'ogbg': Workload(
    'ogbg', 32_768, ('gelu', 'silu', 'model_size'), ('ogbg_molpcba',)
  ),
  'wmt': Workload(
    'wmt',
    128,
    ('post_ln', 'attention_temp', 'glu_tanh'),
    ('wmt14_translate', 'wmt17_translate', 'wmt_sentencepiece_model'),
  ),
}
# Those that a submission is scored on.
SCORED = tuple(name for name in BASES if name not in ('cifar', 'mnist'))
BASE_OF = {name: name for name in BASES} | {
  f'{name}_{variant}': name
  for name, workload in BASES.items()
  for variant in workload.variants
}


def data_dir(workload: str, root: str) -> str:
  """The --data_dir of a workload.

  >>> data_dir('imagenet_vit_glu', '/data')
  '/data/imagenet/pytorch'
  """
  return os.path.join(os.path.expanduser(root), BASES[BASE_OF[workload]].data)


def data_flags(workload: str, root: str) -> list[str]:
  """Flags that tell submission_runner.py where a workload's data are."""
  folder = data_dir(workload, root)
  flags = [f'--data_dir={folder}']
  if workload.startswith('imagenet'):
    flags.append(f'--imagenet_v2_data_dir={folder}')
  if workload.startswith('librispeech'):
    vocabulary = os.path.join(folder, 'spm_model.vocab')
    flags.append(f'--librispeech_tokenizer_vocab_path={vocabulary}')
  return flags


def check_data(workload: str, root: str) -> None:
  """Raise InputError unless the data that a workload reads are there."""
  folder = data_dir(workload, root)
  for name in ('', *BASES[BASE_OF[workload]].contents):
    path = os.path.join(folder, name) if name else folder
    if not os.path.exists(path):
      raise InputError(
        f"Missing data of {workload}: no {path}. Make them by the benchmark's "
        'datasets/dataset_setup.py, or give another --data_dir.'
      )


def _flags_of(path: pathlib.Path) -> set[str]:
  """Names of the flags that a file defines, without importing it."""
  return {
    node.args[0].value
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
    if isinstance(node, ast.Call)
    and getattr(node.func, 'attr', '').startswith('DEFINE_')
    and node.args
    and isinstance(node.args[0], ast.Constant)
    and isinstance(node.args[0].value, str)
  }


def check_installed(flags: set[str]) -> str | None:
  """Whether the benchmark is here and takes our flags, importing nothing.

  Args:
    flags: Names of the flags that it will be given.

  Returns:
    A warning if it is another version than the one tested, or None.

  Raises:
    InputError: it is not installed, or does not take the flags.
  """
  tested = f'commit {COMMIT} of github.com/mlcommons/algorithmic-efficiency'
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
  if f'g{COMMIT}' in version:
    return None
  return f'AlgoPerf {version} is installed; tested is {tested}.'
