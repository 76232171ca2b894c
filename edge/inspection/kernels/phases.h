// One text, two meanings: these macros let a kernel be compiled by nvcc for a GPU and by a C++ compiler for a CPU.
//
// A kernel is a function over blocks.  Inside a block the work is a sequence of phases; the iterations of a phase are
// independent of each other.  Whatever one phase leaves for another iteration of a later phase lies in SHARED or global
// memory and is followed by SYNC().  Iteration i of every phase of a block is run by the same thread, so data that is
// only ever touched under its own i needs no SYNC().
//
//                          CUDA                                            CPU
//   KERNEL(name, …)        __global__ function                             function called once for each block
//   BLOCK                  blockIdx.x                                      its first argument
//   PHASE(i, n)            the block's threads stride over 0 … n - 1       a loop that the compiler vectorises
//   EACH(i, n)             the same                                        a loop left as it is
//   ONCE                   thread 0                                        plain code
//   SYNC()                 __syncthreads()                                 nothing
//   SHARED(type, name, n)  __shared__ array                                array on the stack, not initialised
//   ATOMIC_ADD, _MAX       atomic on int                                   plain update
//   UNROLL                 unrolls the loop that follows                   the same
//
// Floating-point sums are written in one fixed order, so that every instruction set gives the same bits.
#pragma once

#ifdef __CUDACC_RTC__
// The run-time compiler has no headers: the functions are built in, the types are not.
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif

#ifdef __CUDACC__

#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define DEVICE static __device__ __forceinline__
#define BLOCK static_cast<int>(blockIdx.x)
#define PHASE(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)
#define EACH(i, n) PHASE(i, n)
#define ONCE if (threadIdx.x == 0)
#define SYNC() __syncthreads()
#define SHARED(type, name, size) __shared__ type name[size]
#define ATOMIC_ADD(target, value) atomicAdd(target, value)
#define ATOMIC_MAX(target, value) atomicMax(target, value)
#define UNROLL _Pragma("unroll")

#else

#define KERNEL(name, ...) static void name([[maybe_unused]] const int BLOCK, __VA_ARGS__)
#define DEVICE static inline __attribute__((always_inline))
#define BLOCK block_index
#define PHASE(i, n) _Pragma("omp simd") for (int i = 0; i < (n); i++)
#define EACH(i, n) for (int i = 0; i < (n); i++)
#define ONCE
#define SYNC() static_cast<void>(0)
#define SHARED(type, name, size) alignas(64) type name[size]
#define ATOMIC_ADD(target, value) (*(target) += (value))
#define ATOMIC_MAX(target, value) (*(target) = *(target) < (value) ? (value) : *(target))
#define UNROLL _Pragma("GCC unroll 8")

#endif

// Not fminf: its rules for NaN keep compilers from making it one instruction.
template <typename T>
DEVICE T smaller(T a, T b) {
  return a < b ? a : b;
}

// The bits of a float without its sign: as integers these are ordered as the magnitudes are, with NaN above infinity.
DEVICE int magnitude_bits(float value) {
#ifdef __CUDACC__
  return __float_as_int(value) & 0x7fffffff;
#else
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffff;
#endif
}

DEVICE float float_from_bits(int bits) {
#ifdef __CUDACC__
  return __int_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

constexpr int INFINITY_BITS = 0x7f800000;
