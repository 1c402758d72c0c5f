"""The REST transport: URLs and HTTP statuses; everything else is the dataplane's."""
