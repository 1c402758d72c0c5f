"""Names that MoXing keeps under `moxing.tensorflow.utils`."""
