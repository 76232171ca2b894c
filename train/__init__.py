"""Training, evaluation and export of the detectors.  Imports `calib` and `edge`; nothing imports it."""

import os

# Read by OpenMP when torch is first imported, which is after this.  By default its threads spin while they wait, which
# on a machine that does anything else besides takes the cores from the threads waited for: three times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
