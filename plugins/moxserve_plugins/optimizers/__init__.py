"""Optimizer plugins: the seven built-ins of `mox.get_optimizer_fn`, each with its own parameters."""
