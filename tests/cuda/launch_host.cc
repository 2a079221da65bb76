// The handler of launch.cc, for a processor: XLA has no stream there.
#include "launch.cc"

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_product_host,
                              ([](ffi::AnyBuffer x, ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::S16> words,
                                  ffi::Buffer<ffi::S16> more_words, ffi::ResultBuffer<ffi::F32> y,
                                  std::string_view kernel, int64_t layer, int64_t blocks, int64_t threads,
                                  int64_t shared) {
                                  return Product(nullptr, x, scale, words, more_words, y, kernel, layer, blocks,
                                                 threads, shared);
                              }),
                              product_of(ffi::Ffi::Bind()));
#pragma GCC visibility pop
