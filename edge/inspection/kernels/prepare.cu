// Camera bytes → the network input X and a grey plane, in one pass over the frame.
//
// A block makes `strip` output columns of one output row.  It adds up the weighted source rows into SHARED floats,
// then the weighted source columns.  The weights of each axis (box where it shrinks, bilinear where it grows) are
// tables computed once per frame size; they are non-negative and sum to 1 for every output.
//
// What is resized is always a colour image of real numbers: interleaved samples as they are, NV12 converted, Bayer
// demosaiced, each pixel multiplied by its gain where there is a flat field, then the lens's distortion taken out where
// it is known.  That image is never stored.
#include "frame.h"

// Taps of the output positions along one axis: output o is the sum over t < taps of weight[o * taps + t] times source
// start[o] + t.  Outputs that need fewer taps have zeros at either end, within the source.
struct Axis {
  const int32_t* start;
  const float* weight;
  int32_t taps;
};

// The plane of X that each sample of a source pixel feeds, and the linear map from the one to the other.
struct Colour {
  int32_t plane[3];
  float gain[3];
  float offset[3];
  int32_t blue_first;
};

// sum[i] (+)= weights · K successive source rows.
template <int K>
DEVICE void add_rows(float* __restrict__ sum, const uint8_t* __restrict__ row, int64_t stride,
                     const float* __restrict__ weight, int samples, bool first) {
  PHASE(i, samples) {
    float value = first ? 0.0f : sum[i];
    UNROLL for (int k = 0; k < K; k++) value += weight[k] * static_cast<float>(row[k * stride + i]);
    sum[i] = value;
  }
}

// line[j, :] = weights · successive samples of `sum`, for each output column; TAPS of them, or 0: as the table says.
// A pixel is four samples whatever its number of channels, one vector on a CPU: the rest is read and not used.
template <int CHANNELS, int TAPS>
DEVICE void add_columns(float* __restrict__ line, const float* __restrict__ sum, Axis columns, int x0, int outputs) {
  const int taps = TAPS ? TAPS : columns.taps, first = columns.start[x0];
  EACH(j, outputs) {
    const float* source = sum + (columns.start[x0 + j] - first) * CHANNELS;
    const float* weight = columns.weight + (x0 + j) * taps;
    float pixel[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    UNROLL for (int t = 0; t < taps; t++) {
      UNROLL for (int c = 0; c < 4; c++) pixel[c] += weight[t] * source[t * CHANNELS + c];
    }
    UNROLL for (int c = 0; c < 4; c++) line[j * 4 + c] = pixel[c];
  }
}

// The weighted rows' colours, interleaved: what add_columns reads.
template <int LAYOUT, int CORRECTED>
DEVICE void add_frame_rows(float* __restrict__ sum, const uint8_t* __restrict__ pixels, int64_t stride,
                           Frame frame, int start, const float* __restrict__ weight, int from, int end, int first,
                           int count) {
  constexpr int CHANNELS = LAYOUT == MONO ? 1 : 3;
  float* planes = sum + PREPARE_SAMPLES / 2;
  for (int t = from; t < end; t++) {
    if constexpr (CORRECTED == STRAIGHTENED) {
      add_straight_row<LAYOUT>(planes, pixels, stride, frame, start + t, first, count, weight[t], t == from);
    } else {
      add_frame_row<LAYOUT, CORRECTED == FLATTENED>(planes, pixels, stride, frame, start + t, first, count, weight[t],
                                                    t == from);
    }
  }
  SYNC();
  PHASE(i, count) {
    const int at = CORRECTED != STRAIGHTENED && (LAYOUT == NV12 || LAYOUT == BAYER) ? split((first & 1) + i) : i;
    UNROLL for (int c = 0; c < CHANNELS; c++) sum[i * CHANNELS + c] = planes[c * PLANE + at];
  }
}

template <int LAYOUT, int CORRECTED>
DEVICE void prepare(int block, const uint8_t* __restrict__ pixels, int64_t stride, Axis rows, Axis columns,
                    Colour colour, Frame frame, int height, int width, int strip, float* __restrict__ x,
                    float* __restrict__ grey) {
  constexpr int CHANNELS = LAYOUT == MONO ? 1 : 3;
  SHARED(float, sum, PREPARE_SAMPLES + 4);
  SHARED(float, line, PREPARE_COLUMNS * 4);
  const int strips = (width + strip - 1) / strip;
  const int y = block / strips, x0 = block % strips * strip, outputs = smaller(strip, width - x0);
  const int first = columns.start[x0];
  const int samples = (columns.start[x0 + outputs - 1] + columns.taps - first) * CHANNELS;

  const float* weight = rows.weight + y * rows.taps;
  int t = 0, end = rows.taps;
  while (weight[t] == 0.0f) t++;
  while (weight[end - 1] == 0.0f) end--;
  if constexpr (CORRECTED != 0 || LAYOUT == NV12 || LAYOUT == BAYER) {
    add_frame_rows<LAYOUT, CORRECTED>(sum, pixels, stride, frame, rows.start[y], weight, t, end, first,
                                      samples / CHANNELS);
  } else {
    const uint8_t* row = pixels + rows.start[y] * stride + first * CHANNELS;
    for (bool fresh = true; t < end; fresh = false) {
      const int k = end - t >= 4 ? 4 : end - t >= 2 ? 2 : 1;
      if (k == 4) add_rows<4>(sum, row + t * stride, stride, weight + t, samples, fresh);
      if (k == 2) add_rows<2>(sum, row + t * stride, stride, weight + t, samples, fresh);
      if (k == 1) add_rows<1>(sum, row + t * stride, stride, weight + t, samples, fresh);
      t += k;
    }
  }
  EACH(i, 4) sum[samples + i] = 0.0f;
  SYNC();

  switch (columns.taps) {
    case 1: add_columns<CHANNELS, 1>(line, sum, columns, x0, outputs); break;
    case 2: add_columns<CHANNELS, 2>(line, sum, columns, x0, outputs); break;
    case 3: add_columns<CHANNELS, 3>(line, sum, columns, x0, outputs); break;
    case 4: add_columns<CHANNELS, 4>(line, sum, columns, x0, outputs); break;
    case 5: add_columns<CHANNELS, 5>(line, sum, columns, x0, outputs); break;
    case 6: add_columns<CHANNELS, 6>(line, sum, columns, x0, outputs); break;
    default: add_columns<CHANNELS, 0>(line, sum, columns, x0, outputs);
  }

  const int64_t plane = static_cast<int64_t>(height) * width, at = static_cast<int64_t>(y) * width + x0;
  float* x_a = x + colour.plane[0] * plane + at;
  float* x_b = x + colour.plane[1] * plane + at;
  float* x_c = x + colour.plane[2] * plane + at;
  PHASE(j, outputs) {
    const float a = line[j * 4], b = CHANNELS == 1 ? a : line[j * 4 + 1], c = CHANNELS == 1 ? a : line[j * 4 + 2];
    x_a[j] = a * colour.gain[0] + colour.offset[0];
    x_b[j] = b * colour.gain[1] + colour.offset[1];
    x_c[j] = c * colour.gain[2] + colour.offset[2];
    // Rec. 601 luma, as grey levels 0–1.
    const float red = colour.blue_first ? c : a, blue = colour.blue_first ? a : c;
    grey[at + j] = (0.299f * red + 0.587f * b + 0.114f * blue) * (1.0f / 255.0f);
  }
}

KERNEL(prepare_colour, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<COLOUR, 0>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_mono, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<MONO, 0>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_nv12, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<NV12, 0>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_bayer, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<BAYER, 0>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

// With a flat field.
KERNEL(prepare_flat_colour, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<COLOUR, FLATTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_flat_mono, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<MONO, FLATTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_flat_nv12, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<NV12, FLATTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_flat_bayer, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour, Frame frame,
       int height, int width, int strip, float* x, float* grey) {
  prepare<BAYER, FLATTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

// With a lens to be corrected.
KERNEL(prepare_straight_colour, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour,
       Frame frame, int height, int width, int strip, float* x, float* grey) {
  prepare<COLOUR, STRAIGHTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_straight_mono, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour,
       Frame frame, int height, int width, int strip, float* x, float* grey) {
  prepare<MONO, STRAIGHTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_straight_nv12, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour,
       Frame frame, int height, int width, int strip, float* x, float* grey) {
  prepare<NV12, STRAIGHTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}

KERNEL(prepare_straight_bayer, const uint8_t* pixels, int64_t stride, Axis rows, Axis columns, Colour colour,
       Frame frame, int height, int width, int strip, float* x, float* grey) {
  prepare<BAYER, STRAIGHTENED>(BLOCK, pixels, stride, rows, columns, colour, frame, height, width, strip, x, grey);
}
