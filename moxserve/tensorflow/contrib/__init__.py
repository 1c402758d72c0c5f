"""Parts of `tf.contrib` that today's TensorFlow lacks and the documents' scripts use."""
