"""Distributed Shampoo: preconditioning by Kronecker factors, over all ranks."""

from weightavg.pytorch.shampoo.optimizer import DistributedShampoo

__all__ = ['DistributedShampoo']
