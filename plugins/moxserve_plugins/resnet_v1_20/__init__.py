"""Model plugin `resnet_v1_20`: the residual network of 20 layers for small images, with batch normalisation."""
