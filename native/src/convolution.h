// Convolutions: forward, and the gradients by the inputs and by the weights.
#pragma once

#include <cstdint>
#include <optional>

#include "cache.h"
#include "descriptors.h"

namespace jaxaccel {

// What the operands and the result are to oneDNN. The numbers are those of jaxaccel's Python.
enum class Direction : int64_t {
  kForward = 0,  // (src, weights) -> dst
  kInputs = 1,   // (diff_dst, weights) -> diff_src
  kWeights = 2,  // (src, diff_dst) -> diff_weights
};

// What comes after the sum: out = low <= (sum * scale + bias + addend) <= high, divided by out_scale, plus out_zero.
struct Epilogue {
  std::optional<int64_t> scales;  // how many of them: one, or one a feature
  bool has_bias = false;
  bool has_zero_point = false;  // of the inputs
  std::optional<dnnl::memory::desc> addend;
  bool has_relu = false;
  bool has_low = false;
  bool has_high = false;
  bool has_out_scale = false;
  bool has_out_zero = false;
};

struct Convolution {
  Direction direction;
  int64_t groups;
  int64_t group_axis;  // the axis of the weights (0: outputs, 1: inputs) that the groups are a part of
  Axes lhs, rhs, out;  // (batch, channels, spatial) and (outputs, inputs, spatial), groups not split yet
  dnnl::memory::data_type lhs_dtype, rhs_dtype, out_dtype;
  Dims strides, dilation, padding;  // padding: before the first element
  Epilogue epilogue;
};

// Arguments of the epilogue in the primitive, beside those of the product.
constexpr int kScales = DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS;
constexpr int kZeroPoint = DNNL_ARG_ATTR_ZERO_POINTS | DNNL_ARG_SRC;
constexpr int kOutScale = DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST;
constexpr int kOutZero = DNNL_ARG_ATTR_ZERO_POINTS | DNNL_ARG_DST;

// The argument of the primitive that is the left operand, the right one, the result.
struct Roles {
  int lhs, rhs, out;
};
Roles name_roles(Direction direction);

// The argument of a post-operation: addend, low and high come in this order.
int name_post_operation(int position);

Kernel make_convolution(const Convolution& c);

}  // namespace jaxaccel
