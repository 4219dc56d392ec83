"""Reading single characters: a BatchNorm ResNet on an endless stream.

Letters and digits in the fonts that matplotlib ships, under a random affine
map, contrast, polarity and noise. Some characters cannot be told apart at
this size (0 and O, l and I): the error rate has a floor above zero.
"""

import functools
import pathlib
import string
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab.workloads import base, stream
from weightavg import spec

CHARACTERS = string.digits + string.ascii_letters
SIZE = 16
WIDTHS = (16, 32, 64)

_FONTS = [
  'DejaVuSans',
  'DejaVuSans-Bold',
  'DejaVuSans-Oblique',
  'DejaVuSansMono',
  'DejaVuSansMono-Bold',
  'DejaVuSerif',
  'DejaVuSerif-Bold',
  'DejaVuSerif-Italic',
  'STIXGeneral',
  'STIXGeneralBol',
  'STIXGeneralItalic',
  'cmb10',
  'cmr10',
  'cmss10',
  'cmtt10',
]
_CANVAS = 32
_FONT_PIXELS = 24


@functools.cache
def glyphs() -> np.ndarray:
  """Every character in every font, uint8 [fonts, characters, 32, 32]."""
  import matplotlib
  from PIL import Image, ImageDraw, ImageFont

  folder = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf')
  bank = np.zeros((len(_FONTS), len(CHARACTERS), _CANVAS, _CANVAS), np.uint8)
  for i, name in enumerate(_FONTS):
    font = ImageFont.truetype(
      str(folder / f'{name}.ttf'),
      _FONT_PIXELS,
      layout_engine=ImageFont.Layout.BASIC,
    )
    for j, character in enumerate(CHARACTERS):
      image = Image.new('L', (_CANVAS, _CANVAS))
      left, top, right, bottom = font.getbbox(character)
      # Centred, but as large as it is: size tells c from C.
      corner = (
        (_CANVAS - left - right) / 2,
        (_CANVAS - top - bottom) / 2,
      )
      ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
      bank[i, j] = np.asarray(image)
  return bank


def draw(generator: np.random.Generator, size: int) -> dict[str, np.ndarray]:
  """Images [size, 1, 16, 16] and classes [size]."""
  bank = glyphs()
  targets = generator.integers(0, len(CHARACTERS), size)
  fonts = generator.integers(0, len(bank), size)
  angle, shear, squeeze = generator.normal(0, (0.15, 0.15, 0.1), (size, 3)).T
  zoom = 1.25 * np.exp(generator.normal(0, 0.1, size))
  # Output to input coordinates, both in [-1, 1]: rotation, shear, scale.
  cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
  theta = np.empty((size, 2, 3), np.float32)
  theta[:, 0, 0] = cosine * np.exp(squeeze)
  theta[:, 0, 1] = shear * cosine - sine
  theta[:, 1, 0] = sine * np.exp(squeeze)
  theta[:, 1, 1] = shear * sine + cosine
  theta[:, :, 2] = generator.normal(0, 0.08, (size, 2))
  clean = torch.from_numpy(bank[fonts, targets]).float().unsqueeze(1) / 255
  # A 2 x 2 mean first: the output has half the bank's resolution.
  clean = F.avg_pool2d(clean, 2)
  grid = F.affine_grid(
    torch.from_numpy(theta), [size, 1, SIZE, SIZE], align_corners=False
  )
  images = F.grid_sample(clean, grid, align_corners=False).numpy()
  contrast = generator.uniform(0.5, 1.0, size) * generator.choice((-1, 1), size)
  images = images * contrast.astype(np.float32)[:, None, None, None]
  images += 0.12 * generator.standard_normal(images.shape, np.float32)
  return {'inputs': images, 'targets': targets}


class _Block(nn.Module):
  def __init__(self, inputs: int, outputs: int, stride: int) -> None:
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(outputs)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(outputs)
    # As usual for residual networks: every block starts as the identity.
    nn.init.zeros_(self.bn2.weight)
    self.skip: nn.Module = nn.Identity()
    if stride != 1 or inputs != outputs:
      self.skip = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False),
        nn.BatchNorm2d(outputs),
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    hidden = F.relu(self.bn1(self.conv1(x)))
    return F.relu(self.bn2(self.conv2(hidden)) + self.skip(x))


class Model(nn.Module):
  """ResNet for 16 x 16 images: a stem and three blocks."""

  def __init__(self) -> None:
    super().__init__()
    first, second, third = WIDTHS
    self.stem = nn.Conv2d(1, first, 3, 2, 1, bias=False)
    self.stem_bn = nn.BatchNorm2d(first)
    self.block1 = _Block(first, first, 1)
    self.block2 = _Block(first, second, 2)
    self.block3 = _Block(second, third, 2)
    self.head = nn.Linear(third, len(CHARACTERS))

  def forward(self, x: torch.Tensor, dropout_rate: float = 0.0) -> torch.Tensor:
    """Logits [batch, characters]."""
    x = F.relu(self.stem_bn(self.stem(x)))
    x = self.block3(self.block2(self.block1(x)))
    x = F.dropout(x.mean((2, 3)), dropout_rate, self.training)
    return self.head(x)


class Workload(base.LocalWorkload):
  """Accuracy, a fraction: higher is better."""

  name = 'glyph_resnet'
  metric = 'accuracy'
  higher_is_better = True
  loss_kind = spec.LossType.SOFTMAX_CROSS_ENTROPY
  steps = 5000
  batch_size = 32
  sizes: ClassVar = {'eval_train': 1000, 'validation': 10000, 'test': 4000}
  output_layer = 'head'
  evaluation_batch_size = 500

  def _make_model(self) -> nn.Module:
    return Model()

  def _train_arrays(
    self, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    return draw(generator, size)

  def _fixed_data(self) -> list[np.ndarray]:
    return [glyphs(), self._split('validation')['targets'].numpy()]

  def loss_fn(
    self,
    label_batch: torch.Tensor,
    logits_batch: torch.Tensor,
    mask_batch: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
  ) -> dict[str, torch.Tensor]:
    """Cross-entropy of each image, [batch]."""
    losses = F.cross_entropy(
      logits_batch,
      label_batch,
      reduction='none',
      label_smoothing=label_smoothing,
    )
    return base.masked_loss(losses, mask_batch)

  def _metric_sums(
    self, batch: stream.Batch, logits: torch.Tensor
  ) -> dict[str, torch.Tensor]:
    correct = (logits.argmax(-1) == batch['targets']) * batch['weights']
    return {'accuracy': correct.sum()}
