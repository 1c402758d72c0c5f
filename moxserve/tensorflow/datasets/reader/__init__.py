"""How the files of raw data sets are fetched: `raw_reader` has the protocol and the two readers that are built in."""
