"""Where attempts run: one file per place."""
