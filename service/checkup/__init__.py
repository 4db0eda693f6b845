"""The checks of `graft doctor`: what keeps the service from working here, and what to do."""
