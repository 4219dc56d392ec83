"""PyTorch: averagers, optimizers and the training step of the submissions."""
