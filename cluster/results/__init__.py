"""What is done: receipts and manifest, attempts, verification, garbage, datasets, registry."""
