"""Bytes on the wire, without sockets and without TensorFlow; one codec for server and client.

`messages`: the protobuf messages of TensorFlow Serving. `tensors`: TensorProto and NumPy. `predict_wire`: predict
requests and answers as bytes, by way of views and copies of memory; it stands on `wire`. `examples`: tf.Example.
`tfrecord`: record files. `rest`: the JSON of predict; `classify`: JSON and messages of classify and regress; both stand
on `json_values`, `json_numbers` (large bodies straight into arrays) and `float_text` (many floats as text at once).
`v2`, `v2_grpc`, `v2_json`: the Open Inference Protocol. `textproto`: configuration files. `extract`: where the
descriptors come from.
"""
