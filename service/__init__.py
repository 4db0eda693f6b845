"""HTTP: routers, schemas, problems, settings, command line, supervisor. Imports no torch."""
