"""The model server: finds versions, loads them, answers for them. Knows nothing of training.

In the order of a version's life: `source` finds it on disk, `tracking` remembers it, `policy` decides what to load and
unload, `manager` does it, `backends` runs it, `warmup` makes its first request fast. In the order of a request: `grpc`
or `rest` takes it, `dataplane` answers it (`classify` has the rules for tf.Examples), `metrics` counts it,
`request_log` keeps a share of it. `options`, `flags` and `model_config` say what can be set, `reload` changes it while
the server runs, `main` puts it all together.
"""
