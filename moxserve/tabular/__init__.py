"""Tables without TensorFlow: `columns` says how columns become features, `schema` what a table's columns are, the other
modules read CSV, Parquet and tf.Examples.
"""
