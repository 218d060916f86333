#include "descriptors.h"

namespace jaxaccel {

using xla::ffi::DataType;

void refuse(const char* reason) { throw dnnl::error(dnnl_invalid_arguments, reason); }

bool Axes::is_channels_last() const {
  // Batch, then the spatial axes, then channels; an axis of one element may be anywhere.
  int64_t expected = 1;
  for (size_t step = 0; step < sizes.size(); ++step) {
    size_t axis = step == 0 ? 1 : step + 1 == sizes.size() ? 0 : sizes.size() - step;
    if (sizes[axis] != 1 && strides[axis] != expected) return false;
    expected *= sizes[axis];
  }
  return true;
}

dnnl::memory::data_type convert_dtype(DataType dtype) {
  switch (dtype) {
    case DataType::F32:
      return dnnl::memory::data_type::f32;
    case DataType::BF16:
      return dnnl::memory::data_type::bf16;
    case DataType::S8:
      return dnnl::memory::data_type::s8;
    case DataType::U8:
      return dnnl::memory::data_type::u8;
    case DataType::S32:
      return dnnl::memory::data_type::s32;
    default:
      refuse("a dtype other than float32, bfloat16, int8, uint8 and int32");
  }
}

Axes permute_axes(xla::ffi::Span<const int64_t> dimensions, xla::ffi::Span<const int64_t> spec) {
  if (spec.size() != dimensions.size()) refuse("as many axes as the buffer has must be named");
  Dims strides(dimensions.size(), 1);
  for (size_t k = dimensions.size(); k-- > 1;) strides[k - 1] = strides[k] * dimensions[k];
  Axes axes;
  for (int64_t axis : spec) {
    if (axis < 0 || axis >= static_cast<int64_t>(dimensions.size())) refuse("an axis that the buffer has not");
    axes.sizes.push_back(dimensions[axis]);
    axes.strides.push_back(strides[axis]);
  }
  return axes;
}

Axes split_groups(const Axes& axes, size_t axis, int64_t groups) {
  if (groups == 1) return axes;
  if (axes.sizes[axis] % groups != 0) refuse("groups that do not divide the features");
  Axes split = axes;
  split.sizes[axis] /= groups;
  split.sizes.insert(split.sizes.begin(), groups);
  split.strides.insert(split.strides.begin(), axes.strides[axis] * split.sizes[axis + 1]);
  return split;
}

dnnl::memory::desc describe(const Axes& axes, dnnl::memory::data_type dtype) {
  return {axes.sizes, dtype, axes.strides};
}

dnnl::memory::desc describe_any(const Axes& axes, dnnl::memory::data_type dtype) {
  return {axes.sizes, dtype, dnnl::memory::format_tag::any};
}

}  // namespace jaxaccel
