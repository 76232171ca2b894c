"""Training, evaluation and export of the detectors.  Imports `calib` and `edge`; nothing imports it."""
