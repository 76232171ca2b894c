// The kernels as plain C functions for a CPU.  Compiled once per instruction set, REDI_ISA being the functions' suffix.
//
// The structures are mirrored in edge/inspection/library.py, which compares its own layout with redi_layout's; a change
// that this cannot show, as of a signature, raises REDI_ABI in dispatch.cpp.
// Callers vouch for every size and pointer: nothing is checked here, nothing is allocated, nothing is kept.
#include "compare.cu"
#include "hog.cu"
#include "nearest.cu"
#include "prepare.cu"
#include "prompts.cu"

#define JOIN_(name, isa) name##_##isa
#define JOIN(name, isa) JOIN_(name, isa)
#define API(name) extern "C" __attribute__((visibility("default"))) void JOIN(name, REDI_ISA)

namespace {

struct PrepareTables {
  Axis rows, columns;
  Colour colour;
  Frame frame;
  int32_t layout, height, width, strip;
};

struct HogTables {
  int32_t height, width, cell, orientations, pool;
  float nearest, epsilon, clip;
  const float* direction;
  float *cells, *first, *second;  // scratch
};

struct ScaleTables {
  int32_t channels, rows, columns, taps;
  const int32_t* start;
  const float* weight;
};

struct CompareTables {
  int32_t height, width, top_k, scales;
  const ScaleTables* scale;
  const int32_t *begin, *row;
  const float* weight;
  float *distance, *spread;  // scratch: one scale's distances; all scales' spread rows
  int32_t* group_peak;       // scratch
};

// A map put together from tiles.
struct CanvasTables {
  int32_t height, width, top_k;
  int32_t* group_peak;  // scratch
};

struct Comparison {
  float score, peak;
  int32_t flagged;
};

template <typename Kernel, typename... Arguments>
inline __attribute__((always_inline)) void launch(Kernel kernel, int blocks, Arguments... arguments) {
  for (int block = 0; block < blocks; block++) kernel(block, arguments...);
}

int divided_up(int a, int b) { return (a + b - 1) / b; }

// The spread rows of all scales, in p->spread.
inline __attribute__((always_inline)) void spread_distances(const CompareTables* p, const float* const* fx,
                                                            const float* const* fy) {
  float* spread = p->spread;
  for (int l = 0; l < p->scales; l++) {
    const ScaleTables& s = p->scale[l];
    const int positions = s.rows * s.columns;
    launch(cosine_distance, divided_up(positions, COMPARE_STRIP), fx[l], fy[l], s.channels, positions, p->distance);
    launch(spread_columns, s.rows, p->distance, s.columns, s.start, s.weight, s.taps, p->width, spread);
    spread += static_cast<int64_t>(s.rows) * p->width;
  }
}

constexpr int64_t LAYOUT[] = {
    sizeof(Axis),      sizeof(Colour),      sizeof(Frame),         sizeof(PrepareTables),
    sizeof(HogTables), sizeof(ScaleTables), sizeof(CompareTables), sizeof(CanvasTables),
    sizeof(Area),      sizeof(Comparison),  PREPARE_SAMPLES,       PREPARE_COLUMNS,
    PREPARE_PLANE,     HOG_STRIP,           HOG_ORIENTATIONS,      GROUP,
    GATHER_STRIP,
};

}  // namespace

// Fills `sizes` with what the tables must agree on, at most `capacity` numbers, and returns how many there are.
extern "C" __attribute__((visibility("default"))) int JOIN(redi_layout, REDI_ISA)(int64_t* sizes, int capacity) {
  constexpr int count = sizeof(LAYOUT) / sizeof(LAYOUT[0]);
  for (int i = 0; i < count && i < capacity; i++) sizes[i] = LAYOUT[i];
  return count;
}

API(redi_prepare)(const PrepareTables* p, const uint8_t* pixels, int64_t stride, float* x, float* grey) {
  const int blocks = p->height * divided_up(p->width, p->strip);
  const auto run = [=](auto kernel) __attribute__((always_inline)) {
    launch(kernel, blocks, pixels, stride, p->rows, p->columns, p->colour, p->frame, p->height, p->width, p->strip, x,
           grey);
  };
  const bool flat = p->frame.gain != nullptr;
  if (p->frame.bent) {
    switch (p->layout) {
      case MONO: return run(prepare_straight_mono);
      case NV12: return run(prepare_straight_nv12);
      case BAYER: return run(prepare_straight_bayer);
      default: return run(prepare_straight_colour);
    }
  }
  switch (p->layout) {
    case MONO: flat ? run(prepare_flat_mono) : run(prepare_mono); break;
    case NV12: flat ? run(prepare_flat_nv12) : run(prepare_nv12); break;
    case BAYER: flat ? run(prepare_flat_bayer) : run(prepare_bayer); break;
    default: flat ? run(prepare_flat_colour) : run(prepare_colour);
  }
}

API(redi_hog)(const HogTables* p, const float* grey, float* h) {
  const int high = p->height / p->cell, wide = p->width / p->cell, n = p->orientations;
  launch(hog_cells, high * divided_up(p->width, HOG_STRIP / p->cell * p->cell), grey, p->height, p->width, p->cell, n,
         p->direction, p->nearest, p->cells);
  launch(hog_norms, high - 1, p->cells, high, wide, n, p->epsilon, p->clip, p->first, p->second);
  launch(hog_map, high, p->cells, high, wide, n, p->clip, p->first, p->second, h);
}

API(redi_descriptor)(const HogTables* p, const float* h, float* descriptor) {
  const int wide = p->width / p->cell, rows = p->orientations * (p->height / p->cell / p->pool);
  launch(descriptor_pool, rows, h, wide, p->pool, descriptor);
  launch(descriptor_unit, 1, descriptor, rows * (wide / p->pool));
}

API(redi_nearest)(const float* descriptor, const float* bank, int entries, int size, float* similarity, int* best) {
  launch(bank_similarity, entries, descriptor, bank, size, similarity);
  launch(bank_nearest, 1, similarity, entries, best);
}

API(redi_gather)(const int32_t* chosen, const uint64_t* table, int size, float* to) {
  launch(gather_prompt, divided_up(size, GATHER_STRIP), chosen, table, size, to);
}

API(redi_compare)(const CompareTables* p, const float* const* fx, const float* const* fy, float threshold, float* map,
                  uint8_t* mask, Comparison* result) {
  spread_distances(p, fx, fy);
  result->flagged = 0;
  launch(combine_rows, p->height * divided_up(p->width, COMPARE_STRIP), p->spread, p->begin, p->row, p->weight,
         p->width, threshold, map, mask, p->group_peak, &result->flagged);
  launch(top_mean, 1, map, p->group_peak, p->height * p->width / GROUP, p->top_k, &result->score, &result->peak);
}

// `map` at the tile's upper left corner, its rows `stride` apart.
API(redi_compare_tile)(const CompareTables* p, const float* const* fx, const float* const* fy, const float* row_share,
                       const float* column_share, int stride, float* map) {
  spread_distances(p, fx, fy);
  launch(combine_tile, p->height * divided_up(p->width, COMPARE_STRIP), p->spread, p->begin, p->row, p->weight,
         p->width, row_share, column_share, stride, map);
}

API(redi_finish_map)(const CanvasTables* p, const Area* area, float threshold, float* map, uint8_t* mask,
                     Comparison* result) {
  const int pixels = (area->bottom - area->top) * (area->right - area->left);
  result->flagged = 0;
  launch(finish_map, p->height * divided_up(p->width, COMPARE_STRIP), *area, p->width, threshold, map, mask,
         p->group_peak, &result->flagged);
  // No value is below zero, so that the largest ones are never those around the frame.
  launch(top_mean, 1, map, p->group_peak, p->height * p->width / GROUP, smaller(p->top_k, pixels), &result->score,
         &result->peak);
}
