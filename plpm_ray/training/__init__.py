"""Training: a loop that runs without Ray, the TorchTrainer around it, run folders with checkpoints and bundles."""
