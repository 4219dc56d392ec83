"""AlgoPerf submission shampoo."""
