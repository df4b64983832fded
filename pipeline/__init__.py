"""Pictures on disk -> batches on the device."""
