// CUDA's driver, looked up when it is first needed, so that this compiles and loads where there is none; the kernels that
// it was given, what they copy boxes of rows from, and how they are launched.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Handle = void *;  // of a stream, a context, a module or a function of the driver

constexpr int kMaxDynamicSharedSize = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kRelaxedCapture = 2;        // CU_STREAM_CAPTURE_MODE_RELAXED
constexpr int kCooperative = 2;           // CU_LAUNCH_ATTRIBUTE_COOPERATIVE
constexpr int kClusterDimension = 4;      // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION

struct LaunchAttribute {  // CUlaunchAttribute
    int id;
    char padding[4];
    unsigned value[3];
    char rest[52];
};

struct LaunchConfig {  // CUlaunchConfig
    unsigned grid[3], block[3], shared;
    Handle stream;
    const LaunchAttribute *attributes;
    unsigned count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56, "as the driver has them");

struct alignas(64) TensorMap {  // CUtensorMap
    uint64_t words[16];
};
static_assert(sizeof(TensorMap) == 128, "as the driver has them");

struct Driver {
    int (*stream_context)(Handle stream, Handle *context);
    int (*push_context)(Handle context);
    int (*pop_context)(Handle *context);
    int (*exchange_capture_mode)(int *mode);
    int (*load_module)(Handle *module, const void *image);
    int (*get_function)(Handle *function, Handle module, const char *name);
    int (*set_attribute)(Handle function, int attribute, int value);
    int (*launch)(const LaunchConfig *config, Handle function, void **arguments, void **extra);
    int (*describe)(int error, const char **text);
    int (*encode)(TensorMap *map, int type, unsigned rank, void *address, const uint64_t *sizes, const uint64_t *strides,
                  const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int fill);
    bool complete = false;

    Driver() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        complete = library && find(library, "cuStreamGetCtx", stream_context) &&
                   find(library, "cuCtxPushCurrent_v2", push_context) &&
                   find(library, "cuCtxPopCurrent_v2", pop_context) &&
                   find(library, "cuThreadExchangeStreamCaptureMode", exchange_capture_mode) &&
                   find(library, "cuModuleLoadData", load_module) &&
                   find(library, "cuModuleGetFunction", get_function) &&
                   find(library, "cuFuncSetAttribute", set_attribute) && find(library, "cuLaunchKernelEx", launch) &&
                   find(library, "cuGetErrorString", describe) && find(library, "cuTensorMapEncodeTiled", encode);
    }

    template <typename F> static bool find(void *library, const char *name, F &function) {
        function = reinterpret_cast<F>(dlsym(library, name));
        return function != nullptr;
    }
};

const Driver &driver() {
    static const Driver found;
    return found;
}

std::mutex mutex;
std::map<std::string, std::string, std::less<>> images;               // by name
std::map<std::pair<Handle, std::string>, Handle, std::less<>> loaded;  // functions, by context and name

ffi::Error failed(const char *what, int error) {
    const char *text = nullptr;
    driver().describe(error, &text);
    return ffi::Error(ffi::ErrorCode::kInternal, std::string(what) + ": " + (text ? text : "unknown error"));
}

/// A kernel by its name and that of its function, and how it is launched.
struct Launch {
    std::string_view kernel;
    const char *function;
    int64_t blocks, threads, shared;
    int64_t cluster = 1;       // blocks that see each other's memory
    bool cooperative = false;  // whether blocks wait for one another: all of them have to be there at once
};

/// Finds the function of a kernel in the context of a stream, and loads it there when it is first asked for.
ffi::Error find_function(Handle stream, const Launch &launch, Handle *function) {
    const Driver &cuda = driver();
    Handle context = nullptr;
    if (int error = cuda.stream_context(stream, &context)) return failed("the stream has no context", error);
    const std::lock_guard<std::mutex> lock(mutex);
    std::pair<Handle, std::string> key{context, std::string(launch.kernel)};
    if (const auto found = loaded.find(key); found != loaded.end()) {
        *function = found->second;
        return ffi::Error::Success();
    }
    const auto image = images.find(launch.kernel);
    if (image == images.end())
        return ffi::Error(ffi::ErrorCode::kFailedPrecondition,
                          "kernel " + key.second + " was not compiled in this process: trace the program here");
    // XLA may be recording a graph, in which a thread may not load anything, unless it says that it knows.
    int mode = kRelaxedCapture;
    Handle module = nullptr, ignored = nullptr;
    cuda.exchange_capture_mode(&mode);
    cuda.push_context(context);
    int error = cuda.load_module(&module, image->second.data());
    if (!error) error = cuda.get_function(function, module, launch.function);
    if (!error) error = cuda.set_attribute(*function, kMaxDynamicSharedSize, static_cast<int>(launch.shared));
    cuda.pop_context(&ignored);
    cuda.exchange_capture_mode(&mode);
    if (error) return failed("the kernel cannot be loaded", error);
    loaded.emplace(std::move(key), *function);
    return ffi::Error::Success();
}

/// Rows of bytes, of which boxes are copied: some units side by side of 16 rows.
struct Rows {
    void *first;
    uint64_t rows, bytes, unit, units;

    ffi::Error encode(TensorMap *map) const {
        constexpr int kBytes = 0, kPromotion = 3;  // CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_L2_PROMOTION_L2_256B
        const uint64_t sizes[] = {unit, rows, bytes / unit}, strides[] = {bytes, unit};
        const unsigned box[] = {static_cast<unsigned>(unit), 16, static_cast<unsigned>(units)}, steps[] = {1, 1, 1};
        if (int code = driver().encode(map, kBytes, 3, first, sizes, strides, box, steps, 0, 0, kPromotion, 0))
            return failed("boxes of rows cannot be described", code);
        return ffi::Error::Success();
    }
};

/// Launches a kernel with pointers, and behind them with what it copies boxes from.
ffi::Error launched(Handle stream, const Launch &launch, std::vector<void *> pointers,
                    const std::vector<Rows> &boxes = {}) {
    if (!driver().complete) return ffi::Error(ffi::ErrorCode::kUnavailable, "no driver: libcuda.so.1 lacks a function");
    Handle function = nullptr;
    ffi::Error error = find_function(stream, launch, &function);
    if (error.failure()) return error;
    std::vector<void *> arguments;
    for (void *&pointer : pointers) arguments.push_back(&pointer);
    std::vector<TensorMap> maps(boxes.size());
    for (size_t i = 0; i < boxes.size(); i++) {
        error = boxes[i].encode(&maps[i]);
        if (error.failure()) return error;
        arguments.push_back(&maps[i]);
    }
    std::vector<LaunchAttribute> attributes;
    if (launch.cluster > 1)
        attributes.push_back({kClusterDimension, {}, {static_cast<unsigned>(launch.cluster), 1, 1}, {}});
    if (launch.cooperative) attributes.push_back({kCooperative, {}, {1, 0, 0}, {}});
    const LaunchConfig config{{static_cast<unsigned>(launch.blocks), 1, 1},
                              {static_cast<unsigned>(launch.threads), 1, 1},
                              static_cast<unsigned>(launch.shared),
                              stream,
                              attributes.data(),
                              static_cast<unsigned>(attributes.size())};
    if (int code = driver().launch(&config, function, arguments.data(), nullptr))
        return failed("the kernel cannot be launched", code);
    return ffi::Error::Success();
}

}  // namespace
