// XLA's buffers as oneDNN describes memory.
#pragma once

#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace jaxaccel {

using Dims = dnnl::memory::dims;

// The sizes of an array in oneDNN's order of axes, and the distances of their elements.
struct Axes {
  Dims sizes;
  Dims strides;
  bool is_channels_last() const;
};

// Throws dnnl::error for a dtype that oneDNN has not.
dnnl::memory::data_type convert_dtype(xla::ffi::DataType dtype);

// Reads axes in the order of `spec` off a row-major buffer.
Axes permute_axes(xla::ffi::Span<const int64_t> dimensions, xla::ffi::Span<const int64_t> spec);

// Splits `axis` into `groups` times the rest, and puts the groups first.
Axes split_groups(const Axes& axes, size_t axis, int64_t groups);

dnnl::memory::desc describe(const Axes& axes, dnnl::memory::data_type dtype);

// The same sizes in a layout that oneDNN chooses.
dnnl::memory::desc describe_any(const Axes& axes, dnnl::memory::data_type dtype);

[[noreturn]] void refuse(const char* reason);

}  // namespace jaxaccel
