"""From `moxserve serve` to production: the same flags on the C++ server, and manifests for clusters.

`engine` translates flags for tensorflow_model_server; `spec` holds what is to be deployed, checked; `kubernetes`,
`kserve` and `compose` turn it into documents; `write` puts them into files. Nothing here imports TensorFlow.
"""
