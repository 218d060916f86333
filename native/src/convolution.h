// Convolutions: forward, and the gradients by the inputs and by the weights.
#pragma once

#include <cstdint>

#include "cache.h"
#include "descriptors.h"
#include "epilogue.h"

namespace jaxaccel {

// What the operands and the result are to oneDNN. The numbers are those of jaxaccel's Python.
enum class Direction : int64_t {
  kForward = 0,  // (src, weights) -> dst
  kInputs = 1,   // (diff_dst, weights) -> diff_src
  kWeights = 2,  // (src, diff_dst) -> diff_weights
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

// The argument of the primitive that is the left operand, the right one, the result.
struct Roles {
  int lhs, rhs, out;
};
Roles name_roles(Direction direction);

Kernel make_convolution(const Convolution& c);

}  // namespace jaxaccel
