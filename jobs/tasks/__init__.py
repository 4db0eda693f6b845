"""What differs between task types: targets, loss, metrics."""
