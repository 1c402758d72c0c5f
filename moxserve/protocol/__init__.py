"""Bytes on the wire, without sockets and without TensorFlow; one codec for server and client.

`messages`: the protobuf messages of TensorFlow Serving. `tensors`: TensorProto and NumPy. `examples`: tf.Example.
`tfrecord`: record files. `rest`: the JSON of predict, on top of `json_values`. `extract`: where the descriptors come from.
"""
