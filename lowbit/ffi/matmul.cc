// The handler that XLA calls on a CPU for lowbit.ffi.matmul.
#include <cstdlib>
#include <memory>
#include <string>

#include "xla/ffi/api/ffi.h"

extern "C" {
#include "lowbit.h"
}

namespace ffi = xla::ffi;

static ffi::Error Matmul(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> units, ffi::AnyBuffer scale, ffi::AnyBuffer zero,
                         ffi::Buffer<ffi::F32> levels, ffi::ResultBuffer<ffi::F32> y, int64_t bits, int64_t k,
                         int64_t n, int64_t groups, int64_t whole_levels, int64_t first, int64_t step, float unit,
                         int64_t num_levels, int64_t activations, int64_t threads, std::string_view isa) {
    lb_matrix w = {};
    w.kind = LB_PACKED;
    w.bits = static_cast<int32_t>(bits);
    w.k = k;
    w.n = n;
    w.groups = groups;
    w.whole_levels = static_cast<int32_t>(whole_levels);
    w.first = static_cast<int32_t>(first);
    w.step = static_cast<int32_t>(step);
    w.unit = unit;
    w.half_scales = scale.element_type() == ffi::F16;
    w.num_levels = static_cast<int32_t>(num_levels);
    w.data = units.typed_data();
    w.scale = scale.untyped_data();
    w.zero = zero.element_count() ? zero.untyped_data() : nullptr;
    w.levels = levels.typed_data();
    const int64_t tokens = x.dimensions()[0];
    const size_t bytes = (lb_workspace(&w, tokens) + 127) / 64 * 64;
    std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, bytes), &std::free);
    if (!workspace) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for activations");
    switch (lb_matmul(std::string(isa).c_str(), &w, x.typed_data(), tokens, y->typed_data(), n,
                      static_cast<int>(activations), workspace.get(), static_cast<int>(threads))) {
    case LB_OK:
        return ffi::Error::Success();
    case LB_NOT_FINITE:
        return ffi::Error(ffi::ErrorCode::kInvalidArgument, "activations hold NaN or infinity");
    default:
        return ffi::Error(ffi::ErrorCode::kResourceExhausted, "the system gives no more threads");
    }
}

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(lb_ffi_matmul, Matmul,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("k")
                                  .Attr<int64_t>("n")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("whole_levels")
                                  .Attr<int64_t>("first")
                                  .Attr<int64_t>("step")
                                  .Attr<float>("unit")
                                  .Attr<int64_t>("num_levels")
                                  .Attr<int64_t>("activations")
                                  .Attr<int64_t>("threads")
                                  .Attr<std::string_view>("isa"));
#pragma GCC visibility pop
