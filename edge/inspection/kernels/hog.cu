// Grey plane → the self-generated map H: histograms of oriented gradients, L2-Hys normalised.
//
// Gradients are centred differences, zero on the image's border.  A pixel votes with its gradient's magnitude for
// unsigned orientations at (k + 1/2) · 180°/n, without an arc tangent: with d_k = |g · u_k|, bin k's share is
// max(0, d_k - |g| cos(180°/n)) over the sum of these, so a gradient at a bin's centre goes wholly to it and one in
// between is divided continuously between the two neighbours.
#include "phases.h"

constexpr int HOG_STRIP = 256;
constexpr int HOG_ORIENTATIONS = 18;

// The undivided shares of K successive orientations, also added to `total`.
template <int K>
DEVICE void add_shares(const float* __restrict__ gx, const float* __restrict__ gy, const float* __restrict__ magnitude,
                       const float* __restrict__ direction, int n, float nearest, int columns,
                       float* __restrict__ share, float* __restrict__ total) {
  PHASE(i, columns) {
    const float limit = nearest * magnitude[i];
    float sum = total[i];
    UNROLL for (int k = 0; k < K; k++) {
      const float excess = fabsf(gx[i] * direction[k] + gy[i] * direction[n + k]) - limit;
      const float positive = excess > 0.0f ? excess : 0.0f;
      share[k * HOG_STRIP + i] = positive;
      sum += positive;
    }
    total[i] = sum;
  }
}

// votes += share · scale for K successive orientations.
template <int K>
DEVICE void add_votes(const float* __restrict__ share, const float* __restrict__ scale, int columns,
                      float* __restrict__ votes) {
  PHASE(i, columns) {
    UNROLL for (int k = 0; k < K; k++) votes[k * HOG_STRIP + i] += share[k * HOG_STRIP + i] * scale[i];
  }
}

// out[c] = the mean vote of cell c, for cells CELL columns wide.
template <int CELL>
DEVICE void average_votes(const float* __restrict__ votes, int cells, float scale, float* __restrict__ out) {
  PHASE(c, cells) {
    float sum = 0.0f;
    UNROLL for (int i = 0; i < CELL; i++) sum += votes[c * CELL + i];
    out[c] = sum * scale;
  }
}

// A block makes the cells of one row whose pixels lie in one strip of at most HOG_STRIP columns.
// `grey` must be readable one float before and after the plane; `direction` holds n cosines, then n sines;
// `cells`, shape (n, height / cell, width / cell), are mean votes per pixel.
KERNEL(hog_cells, const float* __restrict__ grey, int height, int width, int cell, int n,
       const float* __restrict__ direction, float nearest, float* __restrict__ cells) {
  SHARED(float, gx, HOG_STRIP);
  SHARED(float, gy, HOG_STRIP);
  SHARED(float, magnitude, HOG_STRIP);
  SHARED(float, total, HOG_STRIP);
  SHARED(float, share, HOG_ORIENTATIONS * HOG_STRIP);
  SHARED(float, votes, HOG_ORIENTATIONS * HOG_STRIP);
  const int strip = HOG_STRIP / cell * cell, strips = (width + strip - 1) / strip;
  const int row = BLOCK / strips, x0 = BLOCK % strips * strip, columns = smaller(strip, width - x0);

  for (int k = 0; k < n; k++) PHASE(i, columns) votes[k * HOG_STRIP + i] = 0.0f;
  for (int y = row * cell; y < (row + 1) * cell; y++) {
    const float* line = grey + static_cast<int64_t>(y) * width + x0;
    const bool inside = y > 0 && y < height - 1;
    const float* above = inside ? line - width : line;
    const float* below = inside ? line + width : line;
    PHASE(i, columns) {
      const float across = line[i + 1] - line[i - 1];
      const float h = x0 + i > 0 && x0 + i < width - 1 ? across : 0.0f;
      const float v = below[i] - above[i];
      gx[i] = h;
      gy[i] = v;
      magnitude[i] = sqrtf(h * h + v * v);
      total[i] = 0.0f;
    }
    int k = 0;
    for (; k + 3 <= n; k += 3) {
      add_shares<3>(gx, gy, magnitude, direction + k, n, nearest, columns, share + k * HOG_STRIP, total);
    }
    for (; k < n; k++) {
      add_shares<1>(gx, gy, magnitude, direction + k, n, nearest, columns, share + k * HOG_STRIP, total);
    }
    PHASE(i, columns) magnitude[i] = magnitude[i] / (total[i] + 1e-20f);
    for (k = 0; k + 3 <= n; k += 3) add_votes<3>(share + k * HOG_STRIP, magnitude, columns, votes + k * HOG_STRIP);
    for (; k < n; k++) add_votes<1>(share + k * HOG_STRIP, magnitude, columns, votes + k * HOG_STRIP);
  }
  SYNC();

  const int across = columns / cell, cells_high = height / cell, cells_wide = width / cell;
  const float area = 1.0f / static_cast<float>(cell * cell);
  for (int k = 0; k < n; k++) {
    float* out = cells + (static_cast<int64_t>(k) * cells_high + row) * cells_wide + x0 / cell;
    if (cell == 8) {
      average_votes<8>(votes + k * HOG_STRIP, across, area, out);
    } else {
      EACH(c, across) {
        float sum = 0.0f;
        for (int i = 0; i < cell; i++) sum += votes[k * HOG_STRIP + c * cell + i];
        out[c] = sum * area;
      }
    }
  }
}

// A cell's value in a block of 2 x 2 cells is min(value · first, clip) · second: the two L2-Hys factors of every block.
// Both have shape (cells_high + 1, cells_wide + 1) and zeros along their edges, which stay: the blocks around cell (y, x)
// are (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1).  A block of threads makes one row of them.
KERNEL(hog_norms, const float* __restrict__ cells, int cells_high, int cells_wide, int n, float epsilon, float clip,
       float* __restrict__ first, float* __restrict__ second) {
  const int wide = cells_wide - 1;
  const int64_t plane = static_cast<int64_t>(cells_high) * cells_wide;
  const float* top = cells + static_cast<int64_t>(BLOCK) * cells_wide;
  float* one = first + static_cast<int64_t>(BLOCK + 1) * (cells_wide + 1) + 1;
  float* two = second + static_cast<int64_t>(BLOCK + 1) * (cells_wide + 1) + 1;
  PHASE(i, wide) one[i] = epsilon * epsilon;
  for (int k = 0; k < n; k++) {
    const float* upper = top + k * plane;
    const float* lower = upper + cells_wide;
    PHASE(i, wide) {
      one[i] += upper[i] * upper[i] + upper[i + 1] * upper[i + 1] + lower[i] * lower[i] + lower[i + 1] * lower[i + 1];
    }
  }
  PHASE(i, wide) {
    one[i] = 1.0f / sqrtf(one[i]);
    two[i] = epsilon * epsilon;
  }
  for (int k = 0; k < n; k++) {
    const float* upper = top + k * plane;
    const float* lower = upper + cells_wide;
    PHASE(i, wide) {
      const float a = smaller(upper[i] * one[i], clip), b = smaller(upper[i + 1] * one[i], clip);
      const float c = smaller(lower[i] * one[i], clip), d = smaller(lower[i + 1] * one[i], clip);
      two[i] += a * a + b * b + c * c + d * d;
    }
  }
  PHASE(i, wide) two[i] = 1.0f / sqrtf(two[i]);
}

// H = each cell's value averaged over the one, two or four blocks that contain it.  A block makes one row of cells.
KERNEL(hog_map, const float* __restrict__ cells, int cells_high, int cells_wide, int n, float clip,
       const float* __restrict__ first, const float* __restrict__ second, float* __restrict__ h) {
  const int64_t at = static_cast<int64_t>(BLOCK) * (cells_wide + 1);
  const float *one = first + at, *below_one = one + cells_wide + 1;
  const float *two = second + at, *below_two = two + cells_wide + 1;
  const float rows = BLOCK > 0 && BLOCK < cells_high - 1 ? 0.5f : 1.0f;
  for (int k = 0; k < n; k++) {
    const int64_t line = (static_cast<int64_t>(k) * cells_high + BLOCK) * cells_wide;
    PHASE(i, cells_wide) {
      const float value = cells[line + i];
      const float sum = smaller(value * one[i], clip) * two[i] + smaller(value * one[i + 1], clip) * two[i + 1] +
                        smaller(value * below_one[i], clip) * below_two[i] +
                        smaller(value * below_one[i + 1], clip) * below_two[i + 1];
      h[line + i] = sum * rows * (i > 0 && i < cells_wide - 1 ? 0.5f : 1.0f);
    }
  }
}
