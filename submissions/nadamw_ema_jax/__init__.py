"""AlgoPerf submission nadamw_ema."""
