// The map's descriptor, and the entry of the prompt bank that is most like it.
#include "lanes.h"

// H averaged over pool x pool cells.  A block makes one row of the pooled map; rows of all n planes in turn.
KERNEL(descriptor_pool, const float* __restrict__ h, int cells_wide, int pool, float* __restrict__ descriptor) {
  const int wide = cells_wide / pool;
  const float* top = h + static_cast<int64_t>(BLOCK) * pool * cells_wide;
  EACH(i, wide) {
    float sum = 0.0f;
    for (int y = 0; y < pool; y++) {
      for (int x = 0; x < pool; x++) sum += top[static_cast<int64_t>(y) * cells_wide + i * pool + x];
    }
    descriptor[static_cast<int64_t>(BLOCK) * wide + i] = sum / static_cast<float>(pool * pool);
  }
}

// Scales `descriptor` to unit length, in place; all zeros stay so.  One block.
KERNEL(descriptor_unit, float* __restrict__ descriptor, int size) {
  SHARED(float, lane, LANES);
  PHASE(i, LANES) lane[i] = 0.0f;
  for (int at = 0; at < size; at += LANES) {
    PHASE(i, smaller(LANES, size - at)) lane[i] += descriptor[at + i] * descriptor[at + i];
  }
  add_lanes(lane);
  const float scale = lane[0] > 0.0f ? 1.0f / sqrtf(lane[0]) : 0.0f;
  PHASE(i, size) descriptor[i] *= scale;
}

// similarity[k] = descriptor · bank[k].  A block makes one.
KERNEL(bank_similarity, const float* __restrict__ descriptor, const float* __restrict__ bank, int size,
       float* __restrict__ similarity) {
  SHARED(float, lane, LANES);
  const float* entry = bank + static_cast<int64_t>(BLOCK) * size;
  PHASE(i, LANES) lane[i] = 0.0f;
  for (int at = 0; at < size; at += LANES) {
    PHASE(i, smaller(LANES, size - at)) lane[i] += descriptor[at + i] * entry[at + i];
  }
  add_lanes(lane);
  ONCE similarity[BLOCK] = lane[0];
}

// *best = the index of the largest similarity, the lowest where several are equal.  One block.
KERNEL(bank_nearest, const float* __restrict__ similarity, int entries, int* __restrict__ best) {
  SHARED(int, lane, LANES);
  const int lanes = smaller(LANES, entries);
  EACH(j, lanes) {
    int at = j;
    for (int k = j + LANES; k < entries; k += LANES) {
      if (similarity[k] > similarity[at]) at = k;
    }
    lane[j] = at;
  }
  SYNC();
  ONCE {
    int at = lane[0];
    for (int j = 1; j < lanes; j++) {
      const float here = similarity[lane[j]], there = similarity[at];
      if (here > there || (here == there && lane[j] < at)) at = lane[j];
    }
    *best = at;
  }
}
