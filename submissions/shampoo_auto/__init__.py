"""AlgoPerf submission shampoo_auto."""
