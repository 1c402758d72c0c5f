"""Model plugin `wide_and_deep`: a linear model and a network on feature columns."""
