"""Bytes on the wire, without sockets and without TensorFlow; one codec for server and client.

`messages`: the protobuf messages of TensorFlow Serving. `tensors`: TensorProto and NumPy. `examples`: tf.Example.
`tfrecord`: record files. `rest`: the JSON of predict; `classify`: JSON and messages of classify and regress; both stand
on `json_values`. `textproto`: configuration files. `extract`: where the descriptors come from.
"""
