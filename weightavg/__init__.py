"""Weight averaging along a training run: LAWA, EMA and polynomial averages."""

__version__ = '0.1.0'
