"""The command line: `graft serve` and its processes, and thin clients of the HTTP API."""
