// The features of the chosen prompt, out of a table of where each prompt lies.
#include "phases.h"

// The numbers that a block widens.
constexpr int GATHER_STRIP = 2048;

// An IEEE half-precision number, which single precision holds exactly.
DEVICE float widened(uint32_t half) {
  const int magnitude = static_cast<int>(half & 0x7fff) << 13;
  // Moved to single precision's exponents by 2^112, exactly, subnormal numbers too; but infinity and NaN have their own.
  const float finite = float_from_bits(magnitude) * float_from_bits(0x77800000);
  const float value = magnitude < 0x0f800000 ? finite : float_from_bits(magnitude | INFINITY_BITS);
  return (half & 0x8000) != 0 ? -value : value;
}

// to[0 … size - 1] = entry *chosen, float16 and at a multiple of 4 bytes; `size` is even.  `table` has each entry's
// address, wherever the reader reaches it.  A block makes GATHER_STRIP numbers.
KERNEL(gather_prompt, const int32_t* __restrict__ chosen, const uint64_t* __restrict__ table, int size,
       float* __restrict__ to) {
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(table[*chosen]);
  const int first = BLOCK * (GATHER_STRIP / 2);
  PHASE(i, smaller(GATHER_STRIP / 2, size / 2 - first)) {
    const uint32_t pair = pairs[first + i];
    to[2 * (first + i)] = widened(pair & 0xffff);
    to[2 * (first + i) + 1] = widened(pair >> 16);
  }
}
