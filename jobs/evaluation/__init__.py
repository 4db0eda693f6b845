"""What can honestly be said about a trained model: figures, calibration, plots, model card."""
