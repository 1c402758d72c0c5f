"""One format turned into another: `run.convert` finds out which and does it, whole or not at all."""
