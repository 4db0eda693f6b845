"""The training loop and its parts; the only place where parameters move."""
