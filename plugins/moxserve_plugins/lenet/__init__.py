"""Model plugin `lenet`: slim's LeNet, with slim's variable names."""
