"""Input plugin `numpy`: arrays from .npz or .npy files."""
