"""AlgoPerf submission shampoo_lawa."""
