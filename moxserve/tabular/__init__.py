"""Tables without TensorFlow: `columns` says how columns become features, `declared` reads and checks such declarations;
`cells`, `files` and `table` read CSV, Parquet and tf.Examples.
"""
