"""Image reconstruction with a U-Net, judged by SSIM, as AlgoPerf's fastmri.

Scenes of overlapping textured leaves (the "dead leaves" model of natural
images), from which a part of the columns is missing and the rest is noisy.
"""

import functools
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab.workloads import base, stream
from weightavg import spec

SIZE = 32
WIDTH = 8
# Side of the scene that each split is cut from; no two splits share one.
_SCENES = {'train': 1024, 'validation': 768, 'test': 512}
_SCENE_SALT = 20
_MISSING = 0.25
_NOISE = (0.05, 0.2)
_WINDOW = 7


@functools.cache
def scene(split: str) -> np.ndarray:
  """The square scene of a split, float32 in [0, 1]."""
  side = _SCENES[split]
  generator = base.fixed_generator(_SCENE_SALT, [*_SCENES].index(split))
  image = np.zeros((side, side), np.float32)
  # Enough leaves to cover the ground several times over.
  for _ in range(side * side // 100):
    radius = 3.0 * (1.0 - generator.random()) ** -0.7
    radius = min(radius, 48.0)
    x, y = generator.uniform(-radius, side + radius, 2)
    ratio, angle = generator.uniform(0.4, 1.0), generator.uniform(0, np.pi)
    level = generator.uniform(0.1, 0.9)
    depth, period = generator.uniform(0, 0.15), generator.uniform(3, 12)
    is_box = generator.random() < 0.3
    left, right = max(0, int(x - radius)), min(side, int(x + radius) + 2)
    top, bottom = max(0, int(y - radius)), min(side, int(y + radius) + 2)
    if left >= right or top >= bottom:
      continue
    dx = np.arange(left, right) - x
    dy = np.arange(top, bottom)[:, None] - y
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / ratio
    if is_box:
      inside = np.maximum(abs(along), abs(across)) < radius / np.sqrt(2)
    else:
      inside = along**2 + across**2 < radius**2
    texture = level + depth * np.sin(2 * np.pi * along / period)
    view = image[top:bottom, left:right]
    view[inside] = texture[inside]
  return image.clip(0, 1)


def degrade(
  generator: np.random.Generator, clean: np.ndarray
) -> dict[str, np.ndarray]:
  """Inputs and targets [size, 1, 32, 32] from images [size, 32, 32]."""
  size = len(clean)
  sigma = generator.uniform(*_NOISE, (size, 1, 1)).astype(np.float32)
  noisy = clean + sigma * generator.standard_normal(clean.shape, np.float32)
  kept = generator.random((size, 1, SIZE)) >= _MISSING
  return {'inputs': (noisy * kept)[:, None], 'targets': clean[:, None]}


def ssim(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
  """Structural similarity [batch] of images [batch, 1, height, width].

  Uniform 7 x 7 windows, unbiased variances, a data range of 1, k1 = 0.01,
  k2 = 0.03 (Wang et al. 2004, with scikit-image's and fastmri's defaults).
  """
  count = _WINDOW**2
  planes = [image, target, image * image, target * target, image * target]
  means = F.avg_pool2d(torch.cat(planes, dim=1), _WINDOW, stride=1)
  mean_i, mean_t, square_i, square_t, product = means.unbind(1)
  unbias = count / (count - 1)
  variance_i = unbias * (square_i - mean_i**2)
  variance_t = unbias * (square_t - mean_t**2)
  covariance = unbias * (product - mean_i * mean_t)
  c1, c2 = 0.01**2, 0.03**2
  similarity = (2 * mean_i * mean_t + c1) * (2 * covariance + c2)
  similarity /= (mean_i**2 + mean_t**2 + c1) * (variance_i + variance_t + c2)
  return similarity.mean((1, 2))


class _Convolutions(nn.Module):
  def __init__(self, inputs: int, outputs: int) -> None:
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    self.norm1 = nn.InstanceNorm2d(outputs)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
    self.norm2 = nn.InstanceNorm2d(outputs)

  def forward(self, x: torch.Tensor, dropout_rate: float) -> torch.Tensor:
    for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
      x = F.leaky_relu(norm(conv(x)), 0.2)
      x = F.dropout2d(x, dropout_rate, self.training)
    return x


class Model(nn.Module):
  """U-Net with two poolings and instance normalisation."""

  def __init__(self) -> None:
    super().__init__()
    self.down1 = _Convolutions(1, WIDTH)
    self.down2 = _Convolutions(WIDTH, 2 * WIDTH)
    self.middle = _Convolutions(2 * WIDTH, 4 * WIDTH)
    self.lift2 = nn.ConvTranspose2d(4 * WIDTH, 2 * WIDTH, 2, 2)
    self.up2 = _Convolutions(4 * WIDTH, 2 * WIDTH)
    self.lift1 = nn.ConvTranspose2d(2 * WIDTH, WIDTH, 2, 2)
    self.up1 = _Convolutions(2 * WIDTH, WIDTH)
    self.head = nn.Conv2d(WIDTH, 1, 1)

  def forward(self, x: torch.Tensor, dropout_rate: float = 0.0) -> torch.Tensor:
    """Reconstructed images, of the inputs' shape."""
    # As fastmri does: instance normalisation would otherwise lose the level.
    seen = (x != 0).to(x.dtype)
    count = seen.sum((1, 2, 3), keepdim=True).clamp(min=1)
    mean = x.sum((1, 2, 3), keepdim=True) / count
    x = (x - mean) * seen
    scale = (x.square().sum((1, 2, 3), keepdim=True) / count).sqrt() + 1e-3
    fine = self.down1(x / scale, dropout_rate)
    coarse = self.down2(F.avg_pool2d(fine, 2), dropout_rate)
    x = self.middle(F.avg_pool2d(coarse, 2), dropout_rate)
    x = self.up2(torch.cat([self.lift2(x), coarse], dim=1), dropout_rate)
    x = self.up1(torch.cat([self.lift1(x), fine], dim=1), dropout_rate)
    return self.head(x) * scale + mean


class Workload(base.LocalWorkload):
  """Mean SSIM of the reconstructions: higher is better."""

  name = 'denoise_unet'
  metric = 'ssim'
  higher_is_better = True
  loss_kind = spec.LossType.MEAN_ABSOLUTE_ERROR
  steps = 4000
  batch_size = 8
  regularizers = ('dropout_rate',)
  # 512 images of 1,024 pixels: 524,288 validation pixels.
  sizes: ClassVar = {'eval_train': 32, 'validation': 512, 'test': 128}
  output_layer = 'head'
  evaluation_batch_size = 64

  def _make_model(self) -> nn.Module:
    return Model()

  def _train_arrays(
    self, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    full = scene('train')
    corners = generator.integers(0, len(full) - SIZE + 1, (size, 2, 1))
    rows, columns = (corners + np.arange(SIZE)).transpose(1, 0, 2)
    crops = full[rows[:, :, None], columns[:, None, :]]
    flips = generator.random((3, size, 1, 1)) < 0.5
    crops = np.where(flips[0], crops[:, ::-1], crops)
    crops = np.where(flips[1], crops[:, :, ::-1], crops)
    crops = np.where(flips[2], crops.transpose(0, 2, 1), crops)
    return degrade(generator, crops)

  def _split_arrays(
    self, split: str, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    if split == 'eval_train':
      return super()._split_arrays(split, generator, size)
    full = scene(split)
    tiles = full.reshape(len(full) // SIZE, SIZE, -1, SIZE).swapaxes(1, 2)
    return degrade(generator, tiles.reshape(-1, SIZE, SIZE)[:size])

  def _fixed_data(self) -> list[np.ndarray]:
    # 8 bits: no rounding of a sine should count as other data.
    return [np.round(255 * scene(split)).astype(np.uint8) for split in _SCENES]

  def loss_fn(
    self,
    label_batch: torch.Tensor,
    logits_batch: torch.Tensor,
    mask_batch: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
  ) -> dict[str, torch.Tensor]:
    """Mean absolute error of each image, [batch]; no labels to smooth."""
    del label_smoothing
    losses = (logits_batch - label_batch).abs().mean((1, 2, 3))
    return base.masked_loss(losses, mask_batch)

  def _metric_sums(
    self, batch: stream.Batch, logits: torch.Tensor
  ) -> dict[str, torch.Tensor]:
    similarity = ssim(logits, batch['targets']) * batch['weights']
    return {'ssim': similarity.sum()}
