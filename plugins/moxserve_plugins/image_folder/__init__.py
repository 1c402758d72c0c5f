"""Input plugin `image_folder`: `index` reads the folder, `build` makes the batches."""
