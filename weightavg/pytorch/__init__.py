"""PyTorch: averagers, optimizers and the training step of the submissions."""

from weightavg.pytorch.averager import Averager
from weightavg.pytorch.nadamw import NadamW

__all__ = ['Averager', 'NadamW']
