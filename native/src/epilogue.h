// What comes behind the sums of a product, in the same kernel.
#pragma once

#include <cstdint>
#include <optional>

#include "cache.h"
#include "descriptors.h"

namespace jaxaccel {

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

// Arguments of the epilogue in the primitive, beside those of the product.
constexpr int kScales = DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS;
constexpr int kZeroPoint = DNNL_ARG_ATTR_ZERO_POINTS | DNNL_ARG_SRC;
constexpr int kOutScale = DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST;
constexpr int kOutZero = DNNL_ARG_ATTR_ZERO_POINTS | DNNL_ARG_DST;

// The argument of a post-operation: addend, low and high come in this order.
int name_post_operation(int position);

// Attributes of a primitive whose result has `rank` axes; `scales_mask` says along which axes of the weights the scales vary.
dnnl::primitive_attr describe_epilogue(const Epilogue& epilogue, size_t rank, int scales_mask);

// Adds the arguments of the epilogue to those of the kernel.
void add_epilogue(const Epilogue& epilogue, size_t rank, const dnnl::memory::desc& bias, Kernel& kernel);

// One argument, with the reorder that it needs.
Operand bring(int argument, const dnnl::memory::desc& given, const dnnl::memory::desc& wanted,
              bool is_output = false);

}  // namespace jaxaccel
