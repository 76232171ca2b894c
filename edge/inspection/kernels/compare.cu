// Two sets of feature maps → anomaly map, defect mask, image score.
//
//   map = Gaussian(sum_l upsample(1 - cos(fx_l, fy_l)))
//
// Upsampling and smoothing are linear and separable, so the two together are, per scale and axis, one banded matrix
// with a few taps per output; the matrices come ready-made.  The columns are applied at each scale's own few rows, then
// the rows of all scales at once: there is never a full-size map of one scale.
#include "lanes.h"

constexpr int COMPARE_STRIP = 256;
constexpr int GROUP = 32;

// distance[i] = 1 - cos(fx[:, i], fy[:, i]) at `positions` places of one scale, never below zero; NaN stays NaN.
// A block makes COMPARE_STRIP of them.
KERNEL(cosine_distance, const float* __restrict__ fx, const float* __restrict__ fy, int channels, int positions,
       float* __restrict__ distance) {
  SHARED(float, xy, COMPARE_STRIP);
  SHARED(float, xx, COMPARE_STRIP);
  SHARED(float, yy, COMPARE_STRIP);
  const int first = BLOCK * COMPARE_STRIP, n = smaller(COMPARE_STRIP, positions - first);
  PHASE(i, n) xy[i] = xx[i] = yy[i] = 0.0f;
  int c = 0;
  for (; c + 4 <= channels; c += 4) {
    const float* a = fx + static_cast<int64_t>(c) * positions + first;
    const float* b = fy + static_cast<int64_t>(c) * positions + first;
    PHASE(i, n) {
      float p = xy[i], q = xx[i], r = yy[i];
      UNROLL for (int k = 0; k < 4; k++) {
        const float u = a[static_cast<int64_t>(k) * positions + i], v = b[static_cast<int64_t>(k) * positions + i];
        p += u * v;
        q += u * u;
        r += v * v;
      }
      xy[i] = p;
      xx[i] = q;
      yy[i] = r;
    }
  }
  for (; c < channels; c++) {
    const float* a = fx + static_cast<int64_t>(c) * positions + first;
    const float* b = fy + static_cast<int64_t>(c) * positions + first;
    PHASE(i, n) {
      xy[i] += a[i] * b[i];
      xx[i] += a[i] * a[i];
      yy[i] += b[i] * b[i];
    }
  }
  PHASE(i, n) {
    const float d = 1.0f - xy[i] / (sqrtf(xx[i]) * sqrtf(yy[i]) + 1e-12f);
    distance[first + i] = d < 0.0f ? 0.0f : d;
  }
}

// One row of a scale, `columns` wide, through its column matrix: spread[row, x] = sum_t weight[x, t] · distance[row,
// start[x] + t].  A block makes one row.
KERNEL(spread_columns, const float* __restrict__ distance, int columns, const int32_t* __restrict__ start,
       const float* __restrict__ weight, int taps, int width, float* __restrict__ spread) {
  const float* source = distance + static_cast<int64_t>(BLOCK) * columns;
  float* out = spread + static_cast<int64_t>(BLOCK) * width;
  EACH(x, width) {
    const float* from = source + start[x];
    const float* tap = weight + x * taps;
    float sum = 0.0f;
    for (int t = 0; t < taps; t++) sum += tap[t] * from[t];
    out[x] = sum;
  }
}

// sum[i] (+)= weights · K spread rows.
template <int K>
DEVICE void add_spread(float* __restrict__ sum, const float* __restrict__ spread, int width,
                       const int32_t* __restrict__ row, const float* __restrict__ weight, int n) {
  const float* source[K];
  UNROLL for (int k = 0; k < K; k++) source[k] = spread + static_cast<int64_t>(row[k]) * width;
  PHASE(i, n) {
    float value = sum[i];
    UNROLL for (int k = 0; k < K; k++) value += weight[k] * source[k][i];
    sum[i] = value;
  }
}

// sum[i] = the spread rows of all scales through row y of the row matrices, at columns x0 … x0 + n - 1.  Row y's taps are
// begin[y] … begin[y + 1] - 1.
DEVICE void combine(float* __restrict__ sum, const float* __restrict__ spread, const int32_t* __restrict__ begin,
                    const int32_t* __restrict__ row, const float* __restrict__ weight, int width, int y, int x0, int n) {
  PHASE(i, n) sum[i] = 0.0f;
  int t = begin[y];
  for (; t + 4 <= begin[y + 1]; t += 4) add_spread<4>(sum, spread + x0, width, row + t, weight + t, n);
  for (; t < begin[y + 1]; t++) add_spread<1>(sum, spread + x0, width, row + t, weight + t, n);
}

// What is known of `n` map values, a strip that begins at pixel `at`: their mask bits (most significant first), given
// as 0 or the bit itself; the largest magnitude, as bits, of each GROUP; and how many more are flagged.
DEVICE void note(const float* value, const uint8_t* bit, int n, int64_t at, uint8_t* __restrict__ mask,
                 int* __restrict__ group_peak, int* flagged) {
  SYNC();
  EACH(j, n / 8) {
    int bits = 0;
    for (int i = 0; i < 8; i++) bits |= bit[j * 8 + i];
    mask[at / 8 + j] = static_cast<uint8_t>(bits);
    int count = 0;
    for (; bits; bits &= bits - 1) count++;
    if (count) ATOMIC_ADD(flagged, count);
  }
  EACH(j, n / GROUP) {
    int peak = 0;
    for (int i = 0; i < GROUP; i++) {
      const int bits = magnitude_bits(value[j * GROUP + i]);
      peak = bits > peak ? bits : peak;
    }
    group_peak[at / GROUP + j] = peak;
  }
}

// The spread rows of all scales through the row matrices → map, and what `note` makes of it.  *flagged must start at
// zero.  A block makes COMPARE_STRIP columns of one row.
KERNEL(combine_rows, const float* __restrict__ spread, const int32_t* __restrict__ begin,
       const int32_t* __restrict__ row, const float* __restrict__ weight, int width, float threshold,
       float* __restrict__ map, uint8_t* __restrict__ mask, int* __restrict__ group_peak, int* flagged) {
  SHARED(float, sum, COMPARE_STRIP);
  SHARED(uint8_t, bit, COMPARE_STRIP);
  const int strips = (width + COMPARE_STRIP - 1) / COMPARE_STRIP;
  const int y = BLOCK / strips, x0 = BLOCK % strips * COMPARE_STRIP, n = smaller(COMPARE_STRIP, width - x0);
  combine(sum, spread, begin, row, weight, width, y, x0, n);
  const int64_t at = static_cast<int64_t>(y) * width + x0;
  PHASE(i, n) {
    map[at + i] = sum[i];
    bit[i] = sum[i] > threshold ? 0x80 >> (i & 7) : 0;
  }
  note(sum, bit, n, at, mask, group_peak, flagged);
}

// The same for one tile of a larger map: map[y, x] += share of row y · share of column x · the tile's value.  `map`
// begins at the tile's upper left corner, its rows are `stride` apart.  Where tiles overlap their shares add up to one.
KERNEL(combine_tile, const float* __restrict__ spread, const int32_t* __restrict__ begin,
       const int32_t* __restrict__ row, const float* __restrict__ weight, int width,
       const float* __restrict__ row_share, const float* __restrict__ column_share, int stride,
       float* __restrict__ map) {
  SHARED(float, sum, COMPARE_STRIP);
  const int strips = (width + COMPARE_STRIP - 1) / COMPARE_STRIP;
  const int y = BLOCK / strips, x0 = BLOCK % strips * COMPARE_STRIP, n = smaller(COMPARE_STRIP, width - x0);
  combine(sum, spread, begin, row, weight, width, y, x0, n);
  float* out = map + static_cast<int64_t>(y) * stride + x0;
  const float share = row_share[y];
  PHASE(i, n) out[i] += share * column_share[x0 + i] * sum[i];
}

// Where a frame lies on a map: its rows top … bottom - 1 and columns left … right - 1.
struct Area {
  int32_t top, bottom, left, right;
};

// A map put together from tiles → zero outside `area`, and what `note` makes of it.  What is not a number stays so
// everywhere.  *flagged must start at zero.  A block makes COMPARE_STRIP columns of one row.
KERNEL(finish_map, Area area, int width, float threshold, float* __restrict__ map, uint8_t* __restrict__ mask,
       int* __restrict__ group_peak, int* flagged) {
  SHARED(float, value, COMPARE_STRIP);
  SHARED(uint8_t, bit, COMPARE_STRIP);
  const int strips = (width + COMPARE_STRIP - 1) / COMPARE_STRIP;
  const int y = BLOCK / strips, x0 = BLOCK % strips * COMPARE_STRIP, n = smaller(COMPARE_STRIP, width - x0);
  const int64_t at = static_cast<int64_t>(y) * width + x0;
  const bool within = y >= area.top && y < area.bottom;
  PHASE(i, n) {
    const float share = within && x0 + i >= area.left && x0 + i < area.right ? 1.0f : 0.0f;
    const float v = map[at + i] * share;
    map[at + i] = v;
    value[i] = v;
    bit[i] = v > threshold ? 0x80 >> (i & 7) : 0;
  }
  note(value, bit, n, at, mask, group_peak, flagged);
}

DEVICE int order_bits(float value) { return magnitude_bits(value); }
DEVICE int order_bits(int value) { return value; }

// Counts of 256 digits, then of each sixteen of them: a GPU's one thread that goes through them has 32 steps, not 256.
constexpr int HISTOGRAM = 256 + 16;

// What a radix selection knows so far: the wanted key's leading bits, and its rank among the keys that share them.
struct Selection {
  int prefix, rank;
};

// Finds the k-th largest of the values in the groups of `SIZE` whose peak is at least `floor`, by 8 bits at a time;
// its bits are left in state->prefix.  At least k values must be in those groups; `histogram` has HISTOGRAM ints.
template <int SIZE, typename Value>
DEVICE void select_largest(const Value* __restrict__ values, const int* __restrict__ peaks, int groups, int floor,
                           int k, int* histogram, Selection* state) {
  ONCE {
    state->prefix = 0;
    state->rank = k;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    SYNC();
    PHASE(i, 256) histogram[i] = 0;
    SYNC();
    const int prefix = state->prefix;
    EACH(g, groups) {
      if (peaks[g] < floor) continue;
      for (int i = 0; i < SIZE; i++) {
        const int bits = order_bits(values[static_cast<int64_t>(g) * SIZE + i]);
        if ((static_cast<int64_t>(bits ^ prefix) >> (shift + 8)) == 0) ATOMIC_ADD(histogram + (bits >> shift & 255), 1);
      }
    }
    SYNC();
    int* sixteens = histogram + 256;
    EACH(i, 16) {
      int count = 0;
      for (int digit = 16 * i; digit < 16 * i + 16; digit++) count += histogram[digit];
      sixteens[i] = count;
    }
    SYNC();
    ONCE {
      int sixteen = 15, rank = state->rank;
      while (sixteens[sixteen] < rank) rank -= sixteens[sixteen--];
      int digit = 16 * sixteen + 15;
      while (histogram[digit] < rank) rank -= histogram[digit--];
      state->rank = rank;
      state->prefix = prefix | digit << shift;
    }
  }
  SYNC();
}

// *score = the mean of the `k` largest map values, *peak = the largest; both NaN where the map has a NaN.  One block.
//
// The k-th largest group peak is a lower bound of the k-th largest value, so only groups that reach it need a look.
KERNEL(top_mean, const float* __restrict__ map, const int* __restrict__ group_peak, int groups, int k,
       float* __restrict__ score, float* __restrict__ peak) {
  SHARED(int, histogram, HISTOGRAM);
  SHARED(Selection, state, 1);
  SHARED(int, top, 1);
  SHARED(float, lane, LANES);
  ONCE top[0] = 0;
  SYNC();
  EACH(g, groups) ATOMIC_MAX(top, group_peak[g]);
  SYNC();
  if (top[0] > INFINITY_BITS) {
    ONCE* score = *peak = float_from_bits(top[0]);
    return;
  }

  int floor = 0;
  if (k <= groups) {
    select_largest<1>(group_peak, group_peak, groups, 0, k, histogram, state);
    floor = state->prefix;
    SYNC();
  }
  select_largest<GROUP>(map, group_peak, groups, floor, k, histogram, state);
  const float kth = float_from_bits(state->prefix);
  EACH(j, LANES) {
    float sum = 0.0f;
    for (int g = j; g < groups; g += LANES) {
      if (group_peak[g] < floor) continue;
      for (int i = 0; i < GROUP; i++) {
        const float value = map[static_cast<int64_t>(g) * GROUP + i];
        if (value > kth) sum += value;
      }
    }
    lane[j] = sum;
  }
  add_lanes(lane);
  // `rank` of the k values equal the k-th one.
  ONCE {
    *score = (lane[0] + static_cast<float>(state->rank) * kth) / static_cast<float>(k);
    *peak = float_from_bits(top[0]);
  }
}
