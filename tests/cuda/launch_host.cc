// The handlers of launch.cc, for a processor: XLA has no stream there.
#include "launch.cc"

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_product_host, ([](auto... all) { return Plain(nullptr, all...); }),
                              plain_of(ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_normed_product_host, ([](auto... all) { return Normed(nullptr, all...); }),
                              normed_of(ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_attention_host, ([](auto... all) { return Attention(nullptr, all...); }),
                              attention_of(ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_cuda_step_host, ([](auto... all) { return Step(nullptr, all...); }),
                              step_of(ffi::Ffi::Bind()));
#pragma GCC visibility pop
