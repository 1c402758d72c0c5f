"""Model plugin `function`: the user's own model_fn."""
