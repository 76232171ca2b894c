// A frame's rows as colours, whatever its layout: what `prepare.cu` resizes.
#pragma once

#include "phases.h"

// Samples of one source row segment that a block can hold: 16 KiB, so that it stays in a CPU's first-level cache.
constexpr int PREPARE_SAMPLES = 4096;
// The most output columns that a block can hold.
constexpr int PREPARE_COLUMNS = 512;
// The most pixels of a source row segment where each colour is added up by itself: half of the samples are for that.
constexpr int PREPARE_PLANE = 680;
// A row segment is made from an even column to an even one.
constexpr int PLANE = PREPARE_PLANE + 2;
static_assert(3 * PLANE <= PREPARE_SAMPLES / 2 && PLANE % 2 == 0);
// A flat field's gain of 1.
constexpr float GAIN_ONE = 4096.0f;

// How a frame's bytes lie; `edge.frames.PixelFormat` names what they are.
constexpr int COLOUR = 0, MONO = 1, NV12 = 2, BAYER = 3;
// What is done to it: a flat field alone, or the lens, with or without a flat field.
constexpr int FLATTENED = 1, STRAIGHTENED = 2;

// A lens after Brown and Conrady, as OpenCV calibrates it, in pixels of the frame.
struct Lens {
  float fx, fy, cx, cy, k1, k2, p1, p2, k3;
};

// The frame that the taps point into.  `gain`, in units of 1 / 4096, has one number for each pixel, row by row; null:
// there is no flat field.  `red` says where in each 2 x 2 pixels of a Bayer frame red lies: 2 · row + column.  Where
// `bent` is not 0, the taps point into what the frame would be without the lens's distortion.
struct Frame {
  const uint16_t* gain;
  int32_t height, width, red, bent;
  Lens lens;
};

// plane[i] (+)= weight · value.
DEVICE void add(float* __restrict__ plane, int i, float value, float weight, bool fresh) {
  plane[i] = (fresh ? 0.0f : plane[i]) + weight * value;
}

template <bool GAINED>
DEVICE float gain_at(const uint16_t* __restrict__ gain, int i) {
  return GAINED ? static_cast<float>(gain[i]) * (1.0f / GAIN_ONE) : 1.0f;
}

DEVICE float clamped(float value) {
  const float above = value < 0.0f ? 0.0f : value;
  return above > 255.0f ? 255.0f : above;
}

// Luma of ITU-R BT.601 in limited range, 16–235, as grey levels 0–255.
DEVICE float grey_level(int luma) { return 1.164383f * static_cast<float>(luma < 16 ? 0 : luma - 16); }

// Where the planes of NV12 and Bayer hold pixel i: the even ones come first, then the odd ones, so that a CPU's vectors
// of either lie as they were made.
DEVICE int split(int i) { return (i & 1) * (PLANE / 2) + i / 2; }

// Pixels 2 · pair and the one after it.
DEVICE void add_pair(float* __restrict__ plane, int pair, float a, float b, float weight, bool fresh) {
  add(plane, pair, a, weight, fresh);
  add(plane + PLANE / 2, pair, b, weight, fresh);
}

// Three rows of a Bayer frame; in the middle one, sites are by turns green and the row's own colour, red or blue.
struct BayerRows {
  const uint8_t *above, *here, *below;
};

// A pixel's colour at a site of the row's own colour, and at a green one: column c, its neighbours l and r.
struct Site {
  float own, green, other;
};

DEVICE Site own_site(BayerRows rows, int c, int l, int r) {
  const int cross = rows.here[l] + rows.here[r] + rows.above[c] + rows.below[c];
  const int corners = rows.above[l] + rows.above[r] + rows.below[l] + rows.below[r];
  return {static_cast<float>(rows.here[c]), static_cast<float>(cross) * 0.25f, static_cast<float>(corners) * 0.25f};
}

DEVICE Site green_site(BayerRows rows, int c, int l, int r) {
  return {static_cast<float>(rows.here[l] + rows.here[r]) * 0.5f, static_cast<float>(rows.here[c]),
          static_cast<float>(rows.above[c] + rows.below[c]) * 0.5f};
}

// Columns origin … origin + 2 · pairs - 1 of a row, as far as they exist; OWN is 1 where the own colour lies at odd ones.
// Bilinear; beyond the frame lies its mirror image, in which every site keeps its colour.  All is read before anything
// is written: a compiler cannot know that the planes are no part of the frame.
template <int OWN, bool GAINED>
DEVICE void add_bayer(float* __restrict__ own, float* __restrict__ green, float* __restrict__ other, BayerRows rows,
                      int origin, int pairs, int width, const uint16_t* __restrict__ gain, float weight, bool fresh) {
  // Pairs with neighbours on both sides, without looking; then the others.
  const int from = origin == 0 ? 1 : 0, to = smaller(pairs, (width - 1 - origin) / 2);
  PHASE(interior, to - from) {
    const int pair = from + interior, i = 2 * pair, c = origin + i;
    const float a = gain_at<GAINED>(gain, i), b = gain_at<GAINED>(gain, i + 1);
    const Site first = OWN == 0 ? own_site(rows, c, c - 1, c + 1) : green_site(rows, c, c - 1, c + 1);
    const Site second = OWN == 0 ? green_site(rows, c + 1, c, c + 2) : own_site(rows, c + 1, c, c + 2);
    add_pair(own, pair, first.own * a, second.own * b, weight, fresh);
    add_pair(green, pair, first.green * a, second.green * b, weight, fresh);
    add_pair(other, pair, first.other * a, second.other * b, weight, fresh);
  }
  const int last = to < from ? from : to;
  EACH(edge, 4) {
    const int i = edge < 2 ? edge : 2 * last + edge - 2, c = origin + i;
    const bool there = edge < 2 ? from == 1 : last < pairs;
    if (there && c < width) {
      const int l = c > 0 ? c - 1 : 1, r = c + 1 < width ? c + 1 : width - 2;
      const Site site = (c & 1) == OWN ? own_site(rows, c, l, r) : green_site(rows, c, l, r);
      const float factor = gain_at<GAINED>(gain, i);
      add(own, split(i), site.own * factor, weight, fresh);
      add(green, split(i), site.green * factor, weight, fresh);
      add(other, split(i), site.other * factor, weight, fresh);
    }
  }
}

// Adds `count` pixels of frame row y, from column `first` on, to the planes: one for mono, else red, green, blue, but
// interleaved samples in their own order.  planes[0] is column `first`, or the even one before it.
template <int LAYOUT, bool GAINED>
DEVICE void add_frame_row(float* __restrict__ planes, const uint8_t* __restrict__ pixels, int64_t stride, Frame frame,
                          int y, int first, int count, float weight, bool fresh) {
  const uint8_t* row = pixels + y * stride;
  const int origin = LAYOUT == NV12 || LAYOUT == BAYER ? first & ~1 : first;
  const int pairs = (first + count - origin + 1) / 2;
  const uint16_t* gain = GAINED ? frame.gain + static_cast<int64_t>(y) * frame.width + origin : nullptr;
  if constexpr (LAYOUT == MONO) {
    PHASE(i, count) add(planes, i, static_cast<float>(row[origin + i]) * gain_at<GAINED>(gain, i), weight, fresh);
  }
  if constexpr (LAYOUT == COLOUR) {
    const uint8_t* pixel = row + origin * 3;
    PHASE(i, count) {
      const float factor = gain_at<GAINED>(gain, i);
      const float a = pixel[3 * i], b = pixel[3 * i + 1], c = pixel[3 * i + 2];
      add(planes, i, a * factor, weight, fresh);
      add(planes + PLANE, i, b * factor, weight, fresh);
      add(planes + 2 * PLANE, i, c * factor, weight, fresh);
    }
  }
  if constexpr (LAYOUT == NV12) {
    const uint8_t* luma = row + origin;
    const uint8_t* chroma = pixels + (frame.height + y / 2) * stride + origin;
    PHASE(pair, pairs) {
      const int i = 2 * pair;
      const float first = grey_level(luma[i]), second = grey_level(luma[i + 1]);
      const float cb = static_cast<float>(chroma[i] - 128), cr = static_cast<float>(chroma[i + 1] - 128);
      const float red = 1.596027f * cr, green = -0.391762f * cb - 0.812968f * cr, blue = 2.017232f * cb;
      const float a = gain_at<GAINED>(gain, i), b = gain_at<GAINED>(gain, i + 1);
      add_pair(planes, pair, clamped(first + red) * a, clamped(second + red) * b, weight, fresh);
      add_pair(planes + PLANE, pair, clamped(first + green) * a, clamped(second + green) * b, weight, fresh);
      add_pair(planes + 2 * PLANE, pair, clamped(first + blue) * a, clamped(second + blue) * b, weight, fresh);
    }
  }
  if constexpr (LAYOUT == BAYER) {
    const bool red = (y & 1) == frame.red >> 1;
    const int at = red ? frame.red & 1 : 1 - (frame.red & 1);
    const BayerRows rows = {y > 0 ? row - stride : row + stride, row,
                            y + 1 < frame.height ? row + stride : row - stride};
    float *own = planes + (red ? 0 : 2 * PLANE), *green = planes + PLANE, *other = planes + (red ? 2 * PLANE : 0);
    if (at == 0) {
      add_bayer<0, GAINED>(own, green, other, rows, origin, pairs, frame.width, gain, weight, fresh);
    } else {
      add_bayer<1, GAINED>(own, green, other, rows, origin, pairs, frame.width, gain, weight, fresh);
    }
  }
}

// The colour of one pixel, as add_frame_row adds it, gain included.
template <int LAYOUT>
DEVICE Site colour_at(const uint8_t* __restrict__ pixels, int64_t stride, Frame frame, int x, int y) {
  const uint8_t* row = pixels + y * stride;
  Site colour;
  if constexpr (LAYOUT == MONO) {
    colour.own = colour.green = colour.other = row[x];
  } else if constexpr (LAYOUT == COLOUR) {
    colour = {static_cast<float>(row[3 * x]), static_cast<float>(row[3 * x + 1]), static_cast<float>(row[3 * x + 2])};
  } else if constexpr (LAYOUT == NV12) {
    const uint8_t* chroma = pixels + (frame.height + y / 2) * stride + (x & ~1);
    const float level = grey_level(row[x]);
    const float cb = static_cast<float>(chroma[0] - 128), cr = static_cast<float>(chroma[1] - 128);
    colour = {clamped(level + 1.596027f * cr), clamped(level + (-0.391762f * cb - 0.812968f * cr)),
              clamped(level + 2.017232f * cb)};
  } else {
    const bool red = (y & 1) == frame.red >> 1;
    const int own = red ? frame.red & 1 : 1 - (frame.red & 1);
    const BayerRows rows = {y > 0 ? row - stride : row + stride, row,
                            y + 1 < frame.height ? row + stride : row - stride};
    const int l = x > 0 ? x - 1 : 1, r = x + 1 < frame.width ? x + 1 : frame.width - 2;
    const Site site = (x & 1) == own ? own_site(rows, x, l, r) : green_site(rows, x, l, r);
    colour = red ? site : Site{site.other, site.green, site.own};
  }
  if (frame.gain != nullptr) {
    const float factor = gain_at<true>(frame.gain + static_cast<int64_t>(y) * frame.width, x);
    colour = {colour.own * factor, colour.green * factor, colour.other * factor};
  }
  return colour;
}

// Between 0 and `last`; what is no number is 0.
DEVICE float within(float position, int last) {
  const float above = position > 0.0f ? position : 0.0f;
  return above < static_cast<float>(last) ? above : static_cast<float>(last);
}

// The same as add_frame_row for row y of what the frame would be without distortion: each of its pixels is sampled
// linearly where the lens has put it; beyond the frame, its border goes on.
template <int LAYOUT>
DEVICE void add_straight_row(float* __restrict__ planes, const uint8_t* __restrict__ pixels, int64_t stride,
                             Frame frame, int y, int first, int count, float weight, bool fresh) {
  const Lens lens = frame.lens;
  const float v = (static_cast<float>(y) - lens.cy) / lens.fy;
  EACH(i, count) {
    const float u = (static_cast<float>(first + i) - lens.cx) / lens.fx, r2 = u * u + v * v;
    const float radial = 1.0f + r2 * (lens.k1 + r2 * (lens.k2 + r2 * lens.k3)), uv = 2.0f * u * v;
    const float bent_u = u * radial + lens.p1 * uv + lens.p2 * (r2 + 2.0f * u * u);
    const float bent_v = v * radial + lens.p1 * (r2 + 2.0f * v * v) + lens.p2 * uv;
    const float at_x = within(bent_u * lens.fx + lens.cx, frame.width - 1);
    const float at_y = within(bent_v * lens.fy + lens.cy, frame.height - 1);
    const int left = static_cast<int>(at_x), top = static_cast<int>(at_y);
    const int right = smaller(left + 1, frame.width - 1), bottom = smaller(top + 1, frame.height - 1);
    const float a = at_x - static_cast<float>(left), b = at_y - static_cast<float>(top);
    const Site upper_left = colour_at<LAYOUT>(pixels, stride, frame, left, top);
    const Site upper_right = colour_at<LAYOUT>(pixels, stride, frame, right, top);
    const Site lower_left = colour_at<LAYOUT>(pixels, stride, frame, left, bottom);
    const Site lower_right = colour_at<LAYOUT>(pixels, stride, frame, right, bottom);
    const float w00 = (1.0f - a) * (1.0f - b), w01 = a * (1.0f - b), w10 = (1.0f - a) * b, w11 = a * b;
    add(planes, i, w00 * upper_left.own + w01 * upper_right.own + w10 * lower_left.own + w11 * lower_right.own, weight,
        fresh);
    if constexpr (LAYOUT != MONO) {
      add(planes + PLANE, i,
          w00 * upper_left.green + w01 * upper_right.green + w10 * lower_left.green + w11 * lower_right.green, weight,
          fresh);
      add(planes + 2 * PLANE, i,
          w00 * upper_left.other + w01 * upper_right.other + w10 * lower_left.other + w11 * lower_right.other, weight,
          fresh);
    }
  }
}
