"""Training: the data, read, fetched, augmented and handed out in batches."""
