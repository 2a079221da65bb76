// The handlers that XLA calls on a GPU for lowbit.cuda: they launch kernels that were compiled while a program was traced.
#include "driver.h"

namespace {

/// Where a matrix [n ...] lies that may be one of a stack [layers n ...].
template <typename Buffer> void *of_layer(const Buffer &stack, int64_t layer) {
    const auto sizes = stack.dimensions();
    const size_t bytes = sizes.size() == 3 ? stack.size_bytes() / sizes[0] : 0;
    return static_cast<char *>(stack.untyped_data()) + layer * bytes;
}

using Scales = ffi::Buffer<ffi::F32>;
using Words = ffi::Buffer<ffi::S16>;
using Numbers = ffi::Buffer<ffi::BF16>;

/// Of the rows of a matrix, units of so many bytes; a box has those of a chunk.
template <typename Buffer> Rows rows_of(const Buffer &stack, int64_t layer, uint64_t unit, int64_t chunks) {
    const auto sizes = stack.dimensions();
    const uint64_t rows = sizes[sizes.size() - 2], bytes = stack.size_bytes() / (stack.element_count() / sizes.back());
    return {of_layer(stack, layer), rows, bytes, unit, bytes / unit / chunks};
}

/// What a product copies boxes from: codes, and scales if there are groups of inputs, four at a time.
std::vector<Rows> boxes_of(const Scales &scale, const Words &words, const Words &more_words, int64_t layer,
                           int64_t chunks) {
    constexpr uint64_t kUnit = 64, kScales = 16;  // bytes
    const Rows codes = rows_of(words, layer, kUnit, chunks), more = rows_of(more_words, layer, kUnit, chunks);
    const bool grouped = scale.dimensions().back() > 1;
    return {codes, more, grouped ? rows_of(scale, layer, kScales, chunks) : codes};
}

ffi::Error Plain(Handle stream, ffi::AnyBuffer x, Scales scale, Words words, Words more_words,
                 ffi::ResultBuffer<ffi::F32> y, std::string_view kernel, int64_t layer, int64_t chunks, int64_t blocks,
                 int64_t threads, int64_t shared) {
    return launched(stream, {kernel, "lowbit_product", blocks, threads, shared},
                    {x.untyped_data(), of_layer(scale, layer), y->untyped_data(), nullptr, nullptr, nullptr},
                    boxes_of(scale, words, more_words, layer, chunks));
}

ffi::Error Normed(Handle stream, ffi::AnyBuffer x, Scales scale, Words words, Words more_words, Scales added,
                  Scales norm, ffi::ResultBuffer<ffi::F32> y, ffi::ResultBuffer<ffi::BF16> total,
                  std::string_view kernel, int64_t layer, int64_t chunks, int64_t blocks, int64_t threads,
                  int64_t shared) {
    return launched(stream, {kernel, "lowbit_product", blocks, threads, shared},
                    {x.untyped_data(), of_layer(scale, layer), y->untyped_data(), added.untyped_data(),
                     norm.untyped_data(), total->untyped_data()},
                    boxes_of(scale, words, more_words, layer, chunks));
}

/// Keys and values [layers ...] are changed where they are: the results have their memory.
ffi::Error Attention(Handle stream, Scales qkv, Scales cosines, Scales sines, ffi::Buffer<ffi::S32> filled, Numbers,
                     Numbers, ffi::ResultBuffer<ffi::BF16> mixed, ffi::ResultBuffer<ffi::BF16> keys,
                     ffi::ResultBuffer<ffi::BF16> values, std::string_view kernel, int64_t layer, int64_t blocks,
                     int64_t threads, int64_t shared, int64_t cluster) {
    const size_t bytes = layer * (keys->size_bytes() / keys->dimensions()[0]);
    return launched(stream, {kernel, "lowbit_attention", blocks, threads, shared, cluster},
                    {qkv.untyped_data(), cosines.untyped_data(), sines.untyped_data(), filled.untyped_data(),
                     static_cast<char *>(keys->untyped_data()) + bytes,
                     static_cast<char *>(values->untyped_data()) + bytes, mixed->untyped_data()});
}

/// Arguments and results in their order, those that share memory twice. Blocks of this kernel wait for one another.
ffi::Error Step(Handle stream, ffi::RemainingArgs arguments, ffi::RemainingRets results, std::string_view kernel,
                int64_t blocks, int64_t threads, int64_t shared) {
    std::vector<void *> pointers;
    for (size_t i = 0; i < arguments.size(); i++) {
        const auto buffer = arguments.get<ffi::AnyBuffer>(i);
        if (!buffer.has_value()) return buffer.error();
        pointers.push_back(buffer->untyped_data());
    }
    for (size_t i = 0; i < results.size(); i++) {
        auto buffer = results.get<ffi::AnyBuffer>(i);
        if (!buffer.has_value()) return buffer.error();
        pointers.push_back((*buffer)->untyped_data());
    }
    return launched(stream, {kernel, "lowbit_step", blocks, threads, shared, 1, true}, std::move(pointers));
}

/// A binding and what each product is called with, behind the stream if there is one.
template <typename Binding> auto with_matrix(Binding &&binding) {
    return std::move(binding)
        .template Arg<ffi::AnyBuffer>()
        .template Arg<Scales>()
        .template Arg<Words>()
        .template Arg<Words>();
}
template <typename Binding> auto with_sizes(Binding &&binding) {
    return std::move(binding)
        .template Attr<int64_t>("blocks")
        .template Attr<int64_t>("threads")
        .template Attr<int64_t>("shared");
}
template <typename Binding> auto of_kernel(Binding &&binding) {
    return std::move(binding).template Attr<std::string_view>("kernel").template Attr<int64_t>("layer");
}
template <typename Binding> auto with_launch(Binding &&binding) { return with_sizes(of_kernel(std::move(binding))); }
template <typename Binding> auto with_chunks(Binding &&binding) {
    return with_sizes(of_kernel(std::move(binding)).template Attr<int64_t>("chunks"));
}
template <typename Binding> auto step_of(Binding &&binding) {
    return with_sizes(std::move(binding).RemainingArgs().RemainingRets().template Attr<std::string_view>("kernel"));
}
template <typename Binding> auto attention_of(Binding &&binding) {
    return with_launch(std::move(binding)
                           .template Arg<Scales>()
                           .template Arg<Scales>()
                           .template Arg<Scales>()
                           .template Arg<ffi::Buffer<ffi::S32>>()
                           .template Arg<Numbers>()
                           .template Arg<Numbers>()
                           .template Ret<Numbers>()
                           .template Ret<Numbers>()
                           .template Ret<Numbers>())
        .template Attr<int64_t>("cluster");
}
template <typename Binding> auto plain_of(Binding &&binding) {
    return with_chunks(with_matrix(std::move(binding)).template Ret<ffi::Buffer<ffi::F32>>());
}
template <typename Binding> auto normed_of(Binding &&binding) {
    return with_chunks(with_matrix(std::move(binding))
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
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_step, Step, step_of(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<Handle>>()),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_attention, Attention,
                              attention_of(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<Handle>>()),
                              {ffi::Traits::kCmdBufferCompatible});
#pragma GCC visibility pop
