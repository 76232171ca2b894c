// A driver without a device, for tests of what calls it: memory is the host's, work is done when it is queued, kernels
// leave a line in the log, and every call may be told to fail.  What the real driver forbids is an error here too: calls
// without a current context, handles that it never gave or has taken back, allocating and waiting while recording.
//
// A module is "\x7fELF" and the path of a library made by fibers.py, whose kernels then run; or anything else.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Pointer;
enum { INVALID_VALUE = 1, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, CAPTURE_UNSUPPORTED = 900 };
enum { CONTEXT = 1, DEVICE_MEMORY, HOST_MEMORY, STREAM, EVENT, MODULE, FUNCTION, GRAPH, READY_GRAPH, KINDS };

typedef int Kernel(const unsigned char* packed, int size, int blocks, int threads, uint64_t seed);
typedef struct {
  int kind;  // 0 copy, 1 clear, 2 kernel
  Pointer to, from;
  size_t size;
  Kernel* kernel;
  int blocks, threads;
  unsigned char packed[400];
  char text[900];
} Work;

typedef struct {
  int kind, flags;
  void* memory;
  size_t size;
  Work* work;
  int works, capturing;
} Thing;

#define MOST 4096
static Thing things[MOST];
static int used;
static char log_text[1 << 20];
static size_t log_size;
static char failing[64];
static int failing_code, failing_after;
static _Thread_local Thing* stack[16];
static _Thread_local int depth;
static Thing* primary;
static int retained;

static void note(const char* text) {
  const size_t n = strlen(text);
  if (log_size + n + 2 < sizeof log_text) {
    memcpy(log_text + log_size, text, n);
    log_size += n;
    log_text[log_size++] = '\n';
    log_text[log_size] = 0;
  }
}

static Result enter(const char* name) {
  note(name);
  if (strcmp(name, failing) == 0 && failing_after-- == 0) {
    failing[0] = 0;
    return failing_code;
  }
  return 0;
}

static Thing* make(int kind) {
  if (used == MOST) abort();
  things[used].kind = kind;
  return &things[used++];
}

static Thing* known(const void* handle, int kind) {
  for (int i = 0; i < used; i++) {
    if (handle == &things[i] && things[i].kind == kind) return &things[i];
  }
  return NULL;
}

static Thing* memory_at(Pointer address, size_t size, int kind) {
  for (int i = 0; i < used; i++) {
    const Pointer start = (Pointer)(uintptr_t)things[i].memory;
    if (things[i].kind == kind && address >= start && address + size <= start + things[i].size) return &things[i];
  }
  return NULL;
}

static int current(void) { return depth > 0 && stack[depth - 1] != NULL && known(stack[depth - 1], CONTEXT) != NULL; }

static int recording(void) {
  for (int i = 0; i < used; i++) {
    if (things[i].kind == STREAM && things[i].capturing) return 1;
  }
  return 0;
}

#define ENTER()                              \
  do {                                       \
    const Result refused = enter(__func__);  \
    if (refused) return refused;             \
  } while (0)
#define WITHIN()                             \
  ENTER();                                   \
  if (!current()) return INVALID_CONTEXT
#define NEED(condition, code) \
  if (!(condition)) return code

static void perform(const Work* work) {
  if (work->kind == 0) memmove((void*)(uintptr_t)work->to, (const void*)(uintptr_t)work->from, work->size);
  if (work->kind == 1) memset((void*)(uintptr_t)work->to, 0, work->size);
  if (work->kind == 2) note(work->text);
  if (work->kernel && work->kernel(work->packed, (int)work->size, work->blocks, work->threads, 1)) abort();
}

static Result queue(void* handle, Work work) {
  Thing* stream = known(handle, STREAM);
  NEED(stream, INVALID_HANDLE);
  if (!stream->capturing) {
    perform(&work);
  } else {
    stream->work = realloc(stream->work, sizeof(Work) * (size_t)(stream->works + 1));
    stream->work[stream->works++] = work;
  }
  return 0;
}

// ---- for the tests

void stub_fail(const char* name, int code, int after) {
  snprintf(failing, sizeof failing, "%s", name);
  failing_code = code;
  failing_after = after;
}
const char* stub_log(void) { return log_text; }
void stub_clear_log(void) { log_text[log_size = 0] = 0; }
int stub_live(int kind) {
  int count = 0;
  for (int i = 0; i < used; i++) count += things[i].kind == kind;
  return count;
}
int stub_depth(void) { return depth; }

// ---- the driver

Result cuGetErrorName(int code, const char** name) {
  *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_OTHER";
  return 0;
}
Result cuGetErrorString(int code, const char** text) {
  *text = code == 2 ? "out of memory" : code == 719 ? "unspecified launch failure" : "another error";
  return 0;
}
Result cuInit(unsigned flags) { ENTER(); return flags ? INVALID_VALUE : 0; }
Result cuDriverGetVersion(int* version) { ENTER(); *version = 13000; return 0; }
Result cuDeviceGetCount(int* count) { ENTER(); *count = 1; return 0; }
Result cuDeviceGet(int* device, int ordinal) { ENTER(); *device = ordinal; return ordinal ? 101 : 0; }
Result cuDeviceGetName(char* name, int size, int device) { (void)device; ENTER(); snprintf(name, (size_t)size, "Stub"); return 0; }
Result cuDeviceTotalMem_v2(size_t* size, int device) { (void)device; ENTER(); *size = (size_t)8 << 30; return 0; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  ENTER();
  *value = attribute == 18 ? getenv("STUB_INTEGRATED") != NULL : attribute == 75 ? 8 : attribute == 76 ? 7 : 0;
  return 0;
}
Result cuDevicePrimaryCtxRetain(void** context, int device) {
  (void)device;
  ENTER();
  if (retained++ == 0) primary = make(CONTEXT);
  *context = primary;
  return 0;
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
  (void)device;
  ENTER();
  NEED(retained > 0, INVALID_CONTEXT);
  if (--retained == 0) primary->kind = 0;
  return 0;
}
Result cuCtxPushCurrent_v2(void* context) {
  ENTER();
  NEED(known(context, CONTEXT), INVALID_CONTEXT);
  stack[depth++] = context;
  return 0;
}
Result cuCtxPopCurrent_v2(void** context) {
  ENTER();
  NEED(depth > 0, INVALID_CONTEXT);
  *context = stack[--depth];
  return 0;
}
Result cuCtxSetCurrent(void* context) {
  ENTER();
  if (depth == 0) depth = 1;
  stack[depth - 1] = context;
  return 0;
}
Result cuCtxGetDevice(int* device) { WITHIN(); *device = 0; return 0; }
Result cuCtxSynchronize(void) { WITHIN(); return 0; }

static Result allocate(int kind, size_t size, void** memory) {
  NEED(!recording(), CAPTURE_UNSUPPORTED);
  NEED(size > 0, INVALID_VALUE);
  Thing* thing = make(kind);
  thing->memory = *memory = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  thing->size = size;
  memset(thing->memory, 0xa5, size);
  return 0;
}
static Result take_back(int kind, const void* memory) {
  NEED(!recording(), CAPTURE_UNSUPPORTED);
  Thing* thing = memory_at((Pointer)(uintptr_t)memory, 1, kind);
  NEED(thing && thing->memory == memory, INVALID_VALUE);
  thing->kind = 0;
  free(thing->memory);
  return 0;
}
Result cuMemAlloc_v2(Pointer* address, size_t size) {
  WITHIN();
  void* memory = NULL;
  const Result refused = allocate(DEVICE_MEMORY, size, &memory);
  *address = (Pointer)(uintptr_t)memory;
  return refused;
}
Result cuMemFree_v2(Pointer address) { WITHIN(); return take_back(DEVICE_MEMORY, (void*)(uintptr_t)address); }
Result cuMemHostAlloc(void** memory, size_t size, unsigned flags) {
  WITHIN();
  const Result refused = allocate(HOST_MEMORY, size, memory);
  if (!refused) things[used - 1].flags = (int)flags;
  return refused;
}
Result cuMemFreeHost(void* memory) { WITHIN(); return take_back(HOST_MEMORY, memory); }
Result cuMemHostGetDevicePointer_v2(Pointer* address, void* memory, unsigned flags) {
  WITHIN();
  const Thing* thing = memory_at((Pointer)(uintptr_t)memory, 1, HOST_MEMORY);
  NEED(thing && (thing->flags & 2) && flags == 0, INVALID_VALUE);
  *address = (Pointer)(uintptr_t)memory;
  return 0;
}

static Result copy(int to_kind, Pointer to, int from_kind, Pointer from, size_t size, void* stream) {
  NEED(memory_at(to, size, to_kind) && memory_at(from, size, from_kind), INVALID_VALUE);
  Work work = {.kind = 0, .to = to, .from = from, .size = size};
  return queue(stream, work);
}
Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t size, void* stream) {
  WITHIN();
  return copy(DEVICE_MEMORY, to, HOST_MEMORY, (Pointer)(uintptr_t)from, size, stream);
}
Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t size, void* stream) {
  WITHIN();
  return copy(HOST_MEMORY, (Pointer)(uintptr_t)to, DEVICE_MEMORY, from, size, stream);
}
Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t size, void* stream) {
  WITHIN();
  return copy(DEVICE_MEMORY, to, DEVICE_MEMORY, from, size, stream);
}
Result cuMemsetD8Async(Pointer to, unsigned char value, size_t size, void* stream) {
  WITHIN();
  NEED(memory_at(to, size, DEVICE_MEMORY) && value == 0, INVALID_VALUE);
  Work work = {.kind = 1, .to = to, .size = size};
  return queue(stream, work);
}

Result cuStreamCreate(void** stream, unsigned flags) {
  WITHIN();
  Thing* thing = make(STREAM);
  thing->flags = (int)flags;
  *stream = thing;
  return flags == 1 ? 0 : INVALID_VALUE;  // the default stream would be waited for
}
static Result drop(const void* handle, int kind) {
  NEED(known(handle, kind), INVALID_HANDLE);
  ((Thing*)(uintptr_t)handle)->kind = 0;
  return 0;
}
Result cuStreamDestroy_v2(void* stream) { WITHIN(); return drop(stream, STREAM); }
Result cuStreamSynchronize(void* stream) {
  WITHIN();
  NEED(known(stream, STREAM), INVALID_HANDLE);
  return recording() ? CAPTURE_UNSUPPORTED : 0;
}
Result cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
  WITHIN();
  NEED(known(stream, STREAM) && known(event, EVENT) && flags == 0, INVALID_HANDLE);
  return 0;
}
Result cuEventCreate(void** event, unsigned flags) {
  WITHIN();
  Thing* thing = make(EVENT);
  thing->flags = (int)flags;
  *event = thing;
  return 0;
}
Result cuEventDestroy_v2(void* event) { WITHIN(); return drop(event, EVENT); }
Result cuEventRecord(void* event, void* stream) {
  WITHIN();
  NEED(known(event, EVENT) && known(stream, STREAM), INVALID_HANDLE);
  return 0;
}
Result cuEventSynchronize(void* event) { WITHIN(); NEED(known(event, EVENT), INVALID_HANDLE); return 0; }
static Result elapsed(float* ms, const void* start, const void* end) {
  NEED(known(start, EVENT) && known(end, EVENT), INVALID_HANDLE);
  // CU_EVENT_DISABLE_TIMING
  NEED(!((const Thing*)start)->flags && !((const Thing*)end)->flags, INVALID_HANDLE);
  *ms = 2.5f;
  return 0;
}
Result cuEventElapsedTime(float* ms, void* start, void* end) { WITHIN(); return elapsed(ms, start, end); }
Result cuEventElapsedTime_v2(float* ms, void* start, void* end) { WITHIN(); return elapsed(ms, start, end); }

static Result load(void** module, const void* image) {
  NEED(!recording(), CAPTURE_UNSUPPORTED);
  NEED(memcmp(image, "\x7f" "ELF", 4) == 0, 200);
  Thing* made = make(MODULE);
  made->memory = dlopen((const char*)image + 4, RTLD_NOW | RTLD_LOCAL);
  *module = made;
  return 0;
}
Result cuModuleLoadDataEx(void** module, const void* image, unsigned n, int* options, void** values) {
  (void)n, (void)options;
  WITHIN();
  values[1] = values[3] = NULL;  // both logs are empty
  return load(module, image);
}
Result cuModuleUnload(void* module) { WITHIN(); return drop(module, MODULE); }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
  WITHIN();
  NEED(known(module, MODULE), INVALID_HANDLE);
  NEED(strcmp(name, "missing") != 0, 500);
  char exported[100];
  snprintf(exported, sizeof exported, "emulate_%s", name);
  void* library = ((Thing*)module)->memory;
  Thing* thing = make(FUNCTION);
  thing->memory = strdup(name);
  thing->work = library ? dlsym(library, exported) : NULL;
  NEED(!library || thing->work, 500);
  *function = thing;
  return 0;
}
Result cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** parameters, void** extra) {
  WITHIN();
  const Thing* function = known(handle, FUNCTION);
  NEED(function, INVALID_HANDLE);
  NEED(!parameters && extra[0] == (void*)1 && extra[2] == (void*)2 && !extra[4], INVALID_VALUE);
  const unsigned char* packed = extra[1];
  const size_t size = *(const size_t*)extra[3];
  NEED(size <= sizeof((Work*)0)->packed, INVALID_VALUE);
  Work work = {.kind = 2, .size = size, .kernel = (Kernel*)(void*)function->work, .blocks = (int)gx, .threads = (int)bx};
  memcpy(work.packed, packed, size);
  int at = snprintf(work.text, sizeof work.text, "kernel %s %ux%ux%u %ux%ux%u %u ", (const char*)function->memory, gx,
                    gy, gz, bx, by, bz, shared);
  for (size_t i = 0; i < size && at + 3 < (int)sizeof work.text; i++) at += sprintf(work.text + at, "%02x", packed[i]);
  return queue(stream, work);
}

Result cuStreamBeginCapture_v2(void* stream, int mode) {
  WITHIN();
  NEED(known(stream, STREAM), INVALID_HANDLE);
  NEED(mode == 1 && !recording(), INVALID_VALUE);
  Thing* thing = stream;
  thing->capturing = 1;
  thing->work = NULL;
  thing->works = 0;
  return 0;
}
Result cuStreamEndCapture(void* stream, void** graph) {
  WITHIN();
  Thing* thing = known(stream, STREAM);
  NEED(thing && thing->capturing, INVALID_HANDLE);
  thing->capturing = 0;
  Thing* made = make(GRAPH);
  made->work = thing->work;
  made->works = thing->works;
  *graph = made;
  return 0;
}
Result cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long flags) {
  WITHIN();
  const Thing* from = known(graph, GRAPH);
  NEED(from && flags == 0, INVALID_HANDLE);
  Thing* made = make(READY_GRAPH);
  made->work = from->work;
  made->works = from->works;
  *ready = made;
  return 0;
}
Result cuGraphDestroy(void* graph) { WITHIN(); return drop(graph, GRAPH); }
Result cuGraphExecDestroy(void* ready) { WITHIN(); return drop(ready, READY_GRAPH); }
Result cuGraphLaunch(void* ready, void* stream) {
  WITHIN();
  const Thing* graph = known(ready, READY_GRAPH);
  NEED(graph && known(stream, STREAM), INVALID_HANDLE);
  for (int i = 0; i < graph->works; i++) perform(&graph->work[i]);
  return 0;
}
