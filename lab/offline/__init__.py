"""Average saved checkpoints: `python -m lab.offline average|sweep`."""
