"""Run plugins: `train`, `train_and_evaluate`, `evaluate`, `predict`."""
