"""AlgoPerf submission shampoo_primal."""
