// What is in this library and what of it the running CPU can execute.  Built without any special instruction set.

#define API extern "C" __attribute__((visibility("default")))

// Raised whenever a structure or signature in host.cpp changes, together with its mirror in library.py.
constexpr int REDI_ABI = 4;

API int redi_abi() { return REDI_ABI; }

// The suffixes of the usable functions, space-separated, the fastest last.
API const char* redi_isas() {
#ifdef REDI_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? "baseline avx2 avx512" : avx2 ? "baseline avx2" : "baseline";
#else
  return "baseline";
#endif
}
