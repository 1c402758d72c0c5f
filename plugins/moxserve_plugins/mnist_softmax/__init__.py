"""Model plugin `mnist_softmax`: one linear layer, the network of the MNIST tutorials."""
