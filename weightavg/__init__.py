"""Weight averaging along a training run: LAWA, EMA and polynomial averages."""

from weightavg.config import AveragingConfig

__version__ = '0.1.0'
__all__ = ['AveragingConfig']
