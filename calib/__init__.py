"""What turns a trained model into a calibrated one: thresholds with a stated false-reject rate."""
