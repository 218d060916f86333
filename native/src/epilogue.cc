#include "epilogue.h"

#include "threads.h"

namespace jaxaccel {

using dnnl::memory;

namespace {

memory::desc describe_scalar(size_t rank) {
  return {Dims(rank, 1), memory::data_type::f32, Dims(rank, 1)};
}

}  // namespace

dnnl::primitive_attr describe_epilogue(const Epilogue& e, size_t rank, int scales_mask) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (e.scales) attr.set_scales_mask(DNNL_ARG_WEIGHTS, *e.scales == 1 ? 0 : scales_mask);
  if (e.has_zero_point) attr.set_zero_points_mask(DNNL_ARG_SRC, 0);
  if (e.has_out_scale) attr.set_scales_mask(DNNL_ARG_DST, 0);
  if (e.has_out_zero) attr.set_zero_points_mask(DNNL_ARG_DST, 0);
  dnnl::post_ops post;
  const memory::desc scalar = describe_scalar(rank);
  if (e.addend) post.append_binary(dnnl::algorithm::binary_add, *e.addend);
  if (e.has_low) post.append_binary(dnnl::algorithm::binary_max, scalar);
  if (e.has_high) post.append_binary(dnnl::algorithm::binary_min, scalar);
  if (e.has_relu) post.append_eltwise(dnnl::algorithm::eltwise_relu, 0.f, 0.f);
  attr.set_post_ops(post);
  return attr;
}

void add_epilogue(const Epilogue& e, size_t rank, const memory::desc& bias, Kernel& kernel) {
  auto add = [&](int argument, const memory::desc& desc) {
    kernel.operands.push_back({argument, desc, desc, false, false, {}});
  };
  auto numbers = [](int64_t count, memory::data_type dtype) { return memory::desc({count}, dtype, Dims{1}); };
  auto f32 = memory::data_type::f32, s32 = memory::data_type::s32;
  if (e.scales) add(kScales, numbers(*e.scales, f32));
  if (e.has_bias) add(DNNL_ARG_BIAS, bias);
  if (e.has_zero_point) add(kZeroPoint, numbers(1, s32));
  if (e.has_out_scale) add(kOutScale, numbers(1, f32));
  if (e.has_out_zero) add(kOutZero, numbers(1, s32));
  int position = 0;
  const memory::desc scalar = describe_scalar(rank);
  if (e.addend) add(name_post_operation(position++), *e.addend);
  if (e.has_low) add(name_post_operation(position++), scalar);
  if (e.has_high) add(name_post_operation(position++), scalar);
}

Operand bring(int argument, const memory::desc& given, const memory::desc& wanted, bool is_output) {
  Operand operand{argument, given, wanted, is_output, argument == DNNL_ARG_WEIGHTS, {}};
  if (operand.is_reordered()) {
    dnnl::primitive_attr attr;
    auto from = is_output ? wanted : given, to = is_output ? given : wanted;
    operand.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(cpu(), from, cpu(), to, attr));
  }
  return operand;
}

int name_post_operation(int position) {
  return DNNL_ARG_ATTR_MULTIPLE_POST_OP(position) | DNNL_ARG_SRC_1;
}

}  // namespace jaxaccel
