// The handler that XLA calls on a GPU for lowbit.cuda: it launches a kernel that was compiled while the program was traced.
//
// The driver's library is looked up when it is first needed, so that this compiles and loads where there is none.
#include <dlfcn.h>

#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Handle = void *;  // of a stream, a context, a module or a function of the driver

constexpr int kMaxDynamicSharedSize = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kRelaxedCapture = 2;        // CU_STREAM_CAPTURE_MODE_RELAXED

struct Driver {
    int (*stream_context)(Handle stream, Handle *context);
    int (*push_context)(Handle context);
    int (*pop_context)(Handle *context);
    int (*exchange_capture_mode)(int *mode);
    int (*load_module)(Handle *module, const void *image);
    int (*get_function)(Handle *function, Handle module, const char *name);
    int (*set_attribute)(Handle function, int attribute, int value);
    int (*launch)(Handle function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared,
                  Handle stream, void **arguments, void **extra);
    int (*describe)(int error, const char **text);
    bool complete = false;

    Driver() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        complete = library && find(library, "cuStreamGetCtx", stream_context) &&
                   find(library, "cuCtxPushCurrent_v2", push_context) &&
                   find(library, "cuCtxPopCurrent_v2", pop_context) &&
                   find(library, "cuThreadExchangeStreamCaptureMode", exchange_capture_mode) &&
                   find(library, "cuModuleLoadData", load_module) &&
                   find(library, "cuModuleGetFunction", get_function) &&
                   find(library, "cuFuncSetAttribute", set_attribute) && find(library, "cuLaunchKernel", launch) &&
                   find(library, "cuGetErrorString", describe);
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

/// Finds the function of a kernel in the context of a stream, and loads it there when it is first asked for.
ffi::Error find_function(Handle stream, std::string_view kernel, int shared, Handle *function) {
    const Driver &cuda = driver();
    Handle context = nullptr;
    if (int error = cuda.stream_context(stream, &context)) return failed("the stream has no context", error);
    const std::lock_guard<std::mutex> lock(mutex);
    std::pair<Handle, std::string> key{context, std::string(kernel)};
    if (const auto found = loaded.find(key); found != loaded.end()) {
        *function = found->second;
        return ffi::Error::Success();
    }
    const auto image = images.find(kernel);
    if (image == images.end())
        return ffi::Error(ffi::ErrorCode::kFailedPrecondition,
                          "kernel " + key.second + " was not compiled in this process: trace the program here");
    // XLA may be recording a graph, in which a thread may not load anything, unless it says that it knows.
    int mode = kRelaxedCapture;
    Handle module = nullptr, ignored = nullptr;
    cuda.exchange_capture_mode(&mode);
    cuda.push_context(context);
    int error = cuda.load_module(&module, image->second.data());
    if (!error) error = cuda.get_function(function, module, "lowbit_product");
    if (!error) error = cuda.set_attribute(*function, kMaxDynamicSharedSize, shared);
    cuda.pop_context(&ignored);
    cuda.exchange_capture_mode(&mode);
    if (error) return failed("the kernel cannot be loaded", error);
    loaded.emplace(std::move(key), *function);
    return ffi::Error::Success();
}

/// Where a matrix [n ...] lies that may be one of a stack [layers n ...].
template <typename Buffer> void *of_layer(const Buffer &stack, int64_t layer) {
    const auto sizes = stack.dimensions();
    const size_t bytes = sizes.size() == 3 ? stack.size_bytes() / sizes[0] : 0;
    return static_cast<char *>(stack.untyped_data()) + layer * bytes;
}

/// A kernel, and how it is launched.
struct Launch {
    std::string_view kernel;
    int64_t layer, blocks, threads, shared;
};

/// What is added to a residual stream, the scale of its norm, and where the sums go.
struct Norm {
    void *added, *scale, *total;
};

using Scales = ffi::Buffer<ffi::F32>;
using Words = ffi::Buffer<ffi::S16>;

ffi::Error Product(Handle stream, const Launch &launch, void *x, const Scales &scale, const Words &words,
                   const Words &more_words, void *y, const Norm &norm = {}) {
    if (!driver().complete) return ffi::Error(ffi::ErrorCode::kUnavailable, "no driver: libcuda.so.1 lacks a function");
    Handle function = nullptr;
    ffi::Error error = find_function(stream, launch.kernel, static_cast<int>(launch.shared), &function);
    if (error.failure()) return error;
    void *pointers[] = {x,
                        of_layer(scale, launch.layer),
                        of_layer(words, launch.layer),
                        of_layer(more_words, launch.layer),
                        y,
                        norm.added,
                        norm.scale,
                        norm.total};
    void *arguments[std::size(pointers)];
    for (size_t i = 0; i < std::size(pointers); i++) arguments[i] = &pointers[i];
    if (int code = driver().launch(function, static_cast<unsigned>(launch.blocks), 1, 1,
                                   static_cast<unsigned>(launch.threads), 1, 1, static_cast<unsigned>(launch.shared),
                                   stream, arguments, nullptr))
        return failed("the kernel cannot be launched", code);
    return ffi::Error::Success();
}

ffi::Error Plain(Handle stream, ffi::AnyBuffer x, Scales scale, Words words, Words more_words,
                 ffi::ResultBuffer<ffi::F32> y, std::string_view kernel, int64_t layer, int64_t blocks, int64_t threads,
                 int64_t shared) {
    const Launch launch{kernel, layer, blocks, threads, shared};
    return Product(stream, launch, x.untyped_data(), scale, words, more_words, y->untyped_data());
}

ffi::Error Normed(Handle stream, ffi::AnyBuffer x, Scales scale, Words words, Words more_words, Scales added,
                  Scales norm, ffi::ResultBuffer<ffi::F32> y, ffi::ResultBuffer<ffi::BF16> total,
                  std::string_view kernel, int64_t layer, int64_t blocks, int64_t threads, int64_t shared) {
    const Launch launch{kernel, layer, blocks, threads, shared};
    return Product(stream, launch, x.untyped_data(), scale, words, more_words, y->untyped_data(),
                   {added.untyped_data(), norm.untyped_data(), total->untyped_data()});
}

/// A binding and what each product is called with, behind the stream if there is one.
template <typename Binding> auto with_matrix(Binding &&binding) {
    return std::move(binding)
        .template Arg<ffi::AnyBuffer>()
        .template Arg<Scales>()
        .template Arg<Words>()
        .template Arg<Words>();
}
template <typename Binding> auto with_launch(Binding &&binding) {
    return std::move(binding)
        .template Attr<std::string_view>("kernel")
        .template Attr<int64_t>("layer")
        .template Attr<int64_t>("blocks")
        .template Attr<int64_t>("threads")
        .template Attr<int64_t>("shared");
}
template <typename Binding> auto plain_of(Binding &&binding) {
    return with_launch(with_matrix(std::move(binding)).template Ret<ffi::Buffer<ffi::F32>>());
}
template <typename Binding> auto normed_of(Binding &&binding) {
    return with_launch(with_matrix(std::move(binding))
                           .template Arg<Scales>()
                           .template Arg<Scales>()
                           .template Ret<ffi::Buffer<ffi::F32>>()
                           .template Ret<ffi::Buffer<ffi::BF16>>());
}

}  // namespace

#pragma GCC visibility push(default)
/// Makes a compiled kernel known by a name, which says all that it was compiled from.
extern "C" void lb_cuda_add(const char *name, const char *image, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    images.emplace(name, std::string(image, bytes));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_product, Plain, plain_of(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<Handle>>()),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_normed_product, Normed,
                              normed_of(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<Handle>>()),
                              {ffi::Traits::kCmdBufferCompatible});
#pragma GCC visibility pop
