// Runs the text of a CUDA kernel on a CPU: every thread of a block is a fiber, and all fibers share one CPU thread.
//
// Between two barriers the threads run one after the other, in an order that changes with the seed, the block and the
// barrier: what needs a barrier and has none shows as a wrong result.  __shared__ memory begins each block as signalling
// NaNs.  A barrier that not all threads reach, and an access outside of mapped memory, end the launch with a message.
// Warp intrinsics, real races and effects of the memory system are not there.
//
// Include this, then the .cu file, then write EMULATE(name) for each of its kernels.
#pragma once

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// After the headers: some of them look whether a CUDA compiler reads them.
#define __CUDACC__ 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("redi_shared")))
#define __syncthreads() fibers::barrier(__FILE__, __LINE__)

struct FiberIndex {
  unsigned x, y, z;
};
// Not static: the compiler must expect that a barrier changes them.
FiberIndex threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};

extern "C" uint32_t __start_redi_shared[] __attribute__((visibility("hidden")));
extern "C" uint32_t __stop_redi_shared[] __attribute__((visibility("hidden")));

namespace fibers {

constexpr size_t STACK = 128 << 10, GUARD = 4096;
constexpr int MOST_THREADS = 1024;
constexpr uint32_t GARBAGE = 0x7fa5a5a5;
enum Outcome { FINE = 0, DIVERGED = 1, FAULT = 2, REFUSED = 3 };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  char* stack = nullptr;
  bool started = false, finished = false;
  const char* file = nullptr;
  int line = 0;
};

// So that the section exists where no kernel has shared memory.
__attribute__((used, section("redi_shared"))) static uint32_t anchor[16];
static Fiber fiber[MOST_THREADS];
static int running = 0;
static void (*body)(void*) = nullptr;
static void* body_data = nullptr;
static char message[512];
static void* fault_address = nullptr;
// A barrier that is left out, for tests of the tests, and how often it was passed.
static char skipped_file[64];
static int skipped_line = 0;
static long skipped = 0;

#ifdef __SANITIZE_ADDRESS__

// The sanitizer must know of each change of stacks, and its own fault handler reports more than ours.
static ucontext_t scheduler;
static const void* scheduler_stack = nullptr;
static size_t scheduler_size = 0;

inline void leave() {
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, scheduler_stack, scheduler_size);
  swapcontext(&fiber[running].start, &scheduler);
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size);
}

inline void arrived() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size); }

inline int resume() {
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber[running].stack + GUARD, STACK);
  swapcontext(&scheduler, &fiber[running].start);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  return FINE;
}

struct FaultHandler {};

#else

// setjmp and longjmp between the stacks: unlike swapcontext they ask the kernel for nothing.
static jmp_buf scheduler;

inline void leave() {
  if (_setjmp(fiber[running].at) == 0) _longjmp(scheduler, 1);
}

inline void arrived() {}

inline int resume() {
  const int back = _setjmp(scheduler);
  if (back == 0) {
    if (fiber[running].started) _longjmp(fiber[running].at, 1);
    fiber[running].started = true;
    setcontext(&fiber[running].start);
  }
  return back == 1 ? FINE : FAULT;
}

static pthread_t launching;

inline void on_fault(int number, siginfo_t* info, void*) {
  if (!pthread_equal(pthread_self(), launching)) {
    signal(number, SIG_DFL);  // another thread's fault: it happens again and ends the process
    return;
  }
  fault_address = info->si_addr;
  _longjmp(scheduler, 2);
}

// Takes the fault signals while kernels run.
struct FaultHandler {
  struct sigaction before[3];
  static constexpr int NUMBERS[3] = {SIGSEGV, SIGBUS, SIGFPE};
  FaultHandler() {
    launching = pthread_self();
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(NUMBERS[i], &action, &before[i]);
  }
  ~FaultHandler() {
    for (int i = 0; i < 3; i++) sigaction(NUMBERS[i], &before[i], nullptr);
  }
};

#endif

inline const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

__attribute__((noipa)) void barrier(const char* file, int line) {
  if (line == skipped_line && strcmp(base_name(file), skipped_file) == 0) {
    skipped++;
    return;
  }
  fiber[running].file = file;
  fiber[running].line = line;
  leave();
}

inline void fiber_main() {
  arrived();
  for (;;) {
    body(body_data);
    fiber[running].finished = true;
    leave();
  }
}

inline void make_fiber(Fiber& f) {
  if (!f.stack) {
    f.stack = static_cast<char*>(
        mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (f.stack == MAP_FAILED) abort();
    mprotect(f.stack, GUARD, PROT_NONE);
  }
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = f.stack + GUARD;
  f.start.uc_stack.ss_size = STACK;
  f.start.uc_link = nullptr;
  makecontext(&f.start, fiber_main, 0);
  f.started = false;
}

inline uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// The order of the threads until the next barrier: forwards, backwards or shuffled.
inline void choose_order(int* order, int threads, uint64_t choice) {
  const bool backwards = choice % 3 == 1;
  for (int i = 0; i < threads; i++) order[i] = backwards ? threads - 1 - i : i;
  if (choice % 3 != 2) return;
  for (int i = threads - 1; i > 0; i--) {
    choice = scramble(choice + i);
    std::swap(order[i], order[choice % (i + 1)]);
  }
}

__attribute__((no_sanitize("address", "undefined"))) inline void spoil_shared() {
  for (volatile uint32_t* word = __start_redi_shared; word + 1 <= __stop_redi_shared; word++) *word = GARBAGE;
}

inline int run_block(int threads, uint64_t seed) {
  int order[MOST_THREADS];
  spoil_shared();
  for (int i = 0; i < threads; i++) fiber[i].finished = false;
  for (uint64_t round = 0;; round++) {
    choose_order(order, threads, scramble(seed + round * 0x9e3779b97f4a7c15ull));
    for (int i = 0; i < threads; i++) {
      running = order[i];
      threadIdx.x = static_cast<unsigned>(running);
      if (resume() == FAULT) {
        snprintf(message, sizeof message, "thread %d of block %u touched %p, which it may not", running, blockIdx.x,
                 fault_address);
        return FAULT;
      }
    }
    for (int i = 1; i < threads; i++) {
      const Fiber &a = fiber[0], &b = fiber[i];
      if (a.finished != b.finished || (!a.finished && (a.line != b.line || strcmp(a.file, b.file) != 0))) {
        const auto where = [](const Fiber& f) {
          return f.finished ? std::string("has ended") : "waits at " + (base_name(f.file) + (":" + std::to_string(f.line)));
        };
        snprintf(message, sizeof message, "divergent barrier in block %u: thread 0 %s, thread %d %s", blockIdx.x,
                 where(a).c_str(), i, where(b).c_str());
        return DIVERGED;
      }
    }
    if (fiber[0].finished) return FINE;
  }
}

inline int run_blocks(void (*function)(void*), void* data, int blocks, int threads, uint64_t seed) {
  if (threads < 1 || threads > MOST_THREADS) {
    snprintf(message, sizeof message, "%d threads in a block", threads);
    return REFUSED;
  }
  body = function;
  body_data = data;
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  gridDim = {static_cast<unsigned>(blocks), 1, 1};
  for (int i = 0; i < threads; i++) {
    if (!fiber[i].stack) make_fiber(fiber[i]);
  }
  [[maybe_unused]] FaultHandler handler;
  int outcome = FINE;
  for (int i = 0; i < blocks && outcome == FINE; i++) {
    // Blocks run in any order: here from either end.
    blockIdx = {static_cast<unsigned>(seed & 1 ? blocks - 1 - i : i), 0, 0};
    outcome = run_block(threads, scramble(seed ^ (static_cast<uint64_t>(i) << 20)));
  }
  if (outcome != FINE) {
    for (int i = 0; i < threads; i++) make_fiber(fiber[i]);  // those that were left in the middle
  }
  return outcome;
}

template <typename T>
void describe(std::string& text) {
  if (std::is_pointer<T>::value) {
    text += "p ";
  } else {
    text += std::is_floating_point<T>::value ? 'f' : std::is_integral<T>::value ? 'i' : 's';
    text += std::to_string(sizeof(T)) + ' ';
  }
}

template <typename T>
void take(T& value, const uint8_t* packed, int size, int& at) {
  at = (at + static_cast<int>(alignof(T)) - 1) / static_cast<int>(alignof(T)) * static_cast<int>(alignof(T));
  if (at + static_cast<int>(sizeof(T)) <= size) memcpy(&value, packed + at, sizeof(T));
  at += static_cast<int>(sizeof(T));
}

template <typename... A>
int run(void (*kernel)(A...), const uint8_t* packed, int size, int blocks, int threads, uint64_t seed) {
  struct Call {
    void (*kernel)(A...);
    std::tuple<std::remove_const_t<A>...> arguments;
  } call{kernel, {}};
  int at = 0;
  std::apply([&](auto&... value) { (take(value, packed, size, at), ...); }, call.arguments);
  if (at != size) {
    snprintf(message, sizeof message, "%d bytes of arguments, %d are needed", size, at);
    return REFUSED;
  }
  const auto call_it = [](void* data) {
    const Call& c = *static_cast<const Call*>(data);
    std::apply(c.kernel, c.arguments);
  };
  return run_blocks(call_it, &call, blocks, threads, seed);
}

template <typename... A>
const char* signature(void (*)(A...)) {
  static const std::string text = [] {
    std::string made;
    (describe<A>(made), ...);
    return made;
  }();
  return text.c_str();
}

}  // namespace fibers

extern "C" const char* fibers_message() { return fibers::message; }

extern "C" void fibers_skip(const char* file, int line) {
  snprintf(fibers::skipped_file, sizeof fibers::skipped_file, "%s", file);
  fibers::skipped_line = line;
  fibers::skipped = 0;
}

extern "C" long fibers_skipped() { return fibers::skipped; }

inline int atomicAdd(int* target, int value) {
  const int before = *target;
  *target += value;
  return before;
}

inline int atomicMax(int* target, int value) {
  const int before = *target;
  if (before < value) *target = value;
  return before;
}

inline int __float_as_int(float value) {
  int bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

#define EMULATE(name)                                                                                     \
  extern "C" int emulate_##name(const uint8_t* packed, int size, int blocks, int threads, uint64_t seed) { \
    return fibers::run(name, packed, size, blocks, threads, seed);                                        \
  }                                                                                                       \
  extern "C" const char* signature_##name() { return fibers::signature(name); }
