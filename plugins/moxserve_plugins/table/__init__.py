"""Input plugin `table`: columns of CSV, Parquet and TFRecord files."""
