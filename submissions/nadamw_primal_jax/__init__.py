"""AlgoPerf submission nadamw_primal."""
