"""Data in, artifact out: datasets, recipes, training, job states, store, worker. Knows no HTTP."""
