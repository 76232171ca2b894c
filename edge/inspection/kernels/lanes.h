// Sums whose order does not depend on the machine: 64 partial sums, then a tree.
#pragma once

#include "phases.h"

constexpr int LANES = 64;

// Adds up the LANES floats in `lane`, in place; the sum is in lane[0], visible to the whole block.
DEVICE void add_lanes(float* lane) {
  for (int half = LANES / 2; half > 0; half /= 2) {
    SYNC();
    PHASE(i, half) lane[i] += lane[i + half];
  }
  SYNC();
}
