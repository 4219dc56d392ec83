"""AlgoPerf submission shampoo_ema."""
