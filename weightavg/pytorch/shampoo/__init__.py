"""Distributed Shampoo: preconditioning by Kronecker factors, over all ranks.

Reading order: `reference` (the algorithm, slow and literal), `step` (the same
step, batched), `inverse_roots` and `grafting` (its parts), `symmetric_pairs`
and `block_state` (storage), `blocking`, `root_schedule` and `distribution`
(which blocks, when, on which rank), `checkpoint`, `optimizer`.
"""

from weightavg.pytorch.shampoo.optimizer import DistributedShampoo

__all__ = ['DistributedShampoo']
