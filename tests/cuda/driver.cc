// What launch.cc asks of CUDA's driver, for a processor: a module is the path of a library made with host.h.
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace {
int loads, captures;

// As cuda.h has them.
struct Attribute {
    int id, padding;
    unsigned value[16];
};
struct Config {
    unsigned grid[3], block[3], shared;
    void *stream;
    const Attribute *attributes;
    unsigned count;
};
}  // namespace

extern "C" {
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuStreamGetCtx(void *, void **context) { return *context = &loads, 0; }
int cuCtxPushCurrent_v2(void *) { return 0; }
int cuCtxPopCurrent_v2(void **) { return 0; }
int cuThreadExchangeStreamCaptureMode(int *mode) { return captures += *mode == 2 ? 1 : -1, *mode = 1, 0; }
int cuModuleLoadData(void **module, const void *image) {
    // A graph is being recorded: what was not allowed may not be done.
    if (captures != 1) return 900;
    loads++;
    *module = dlopen(static_cast<const char *>(image), RTLD_NOW);
    return *module ? 0 : 200;
}
int cuModuleGetFunction(void **function, void *module, const char *) { return *function = dlsym(module, "run"), 0; }
int cuFuncSetAttribute(void *, int attribute, int value) { return attribute == 8 && value <= 227 << 10 ? 0 : 1; }
int cuLaunchKernelEx(const Config *config, void *function, void **arguments, void **) {
    // Blocks that wait for one another are there at once, as those of a cluster are.
    constexpr int cooperative = 2, cluster = 4;
    const int id = config->count ? config->attributes->id : 0;
    if (config->count > 1 || (id && id != cooperative && id != cluster)) return 1;
    const unsigned size = id == cluster ? config->attributes->value[0] : id == cooperative ? config->grid[0] : 1;
    using Run = void(void **, int, int, int, int);
    reinterpret_cast<Run *>(function)(arguments, config->grid[0], size, config->block[0], config->shared);
    return 0;
}
int cuTensorMapEncodeTiled(void *map, int, unsigned, void *first, const uint64_t *sizes, const uint64_t *strides,
                           const unsigned *box, const unsigned *, int, int, int, int) {
    const bool whole = (uint64_t)first % 16 == 0 && strides[0] % 16 == 0 && strides[1] % 16 == 0 && box[2] <= 256;
    if (!whole || strides[1] != sizes[0] || box[0] != sizes[0] || sizes[2] * sizes[0] != strides[0]) return 1;
    // As host.h has them.
    const uint64_t rows[16] = {(uint64_t)first, sizes[1], strides[0], sizes[0], box[1], box[2]};
    return std::memcpy(map, rows, sizeof rows), 0;
}
int cuGetErrorString(int error, const char **text) { return *text = error == 200 ? "no such image" : "an error", 0; }
int loads_so_far() { return loads; }
}
