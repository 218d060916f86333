#include "convolution.h"

#include <algorithm>

#include "threads.h"

namespace jaxaccel {

namespace {

using dnnl::memory;
using Pad = std::pair<Dims, Dims>;

memory::desc describe_activations(const Axes& axes, memory::data_type dtype) {
  return axes.is_channels_last() ? describe(axes, dtype) : describe_any(axes, dtype);
}

// oneDNN wants the padding behind the last element to fit the sizes.
Pad fit_padding(const Convolution& c, const Axes& src, const Axes& weights, const Axes& dst) {
  Pad padding{c.padding, {}};
  for (size_t k = 0; k < c.strides.size(); ++k) {
    int64_t window = (weights.sizes[weights.sizes.size() - c.strides.size() + k] - 1) * c.dilation[k] + 1;
    int64_t behind = (dst.sizes[k + 2] - 1) * c.strides[k] + window - src.sizes[k + 2] - c.padding[k];
    // What a stride leaves over at the end is no padding.
    padding.second.push_back(behind > -c.strides[k] ? std::max<int64_t>(behind, 0) : behind);
  }
  return padding;
}

Dims count_gaps(const Dims& dilation) {
  Dims gaps;
  for (int64_t d : dilation) gaps.push_back(d - 1);
  return gaps;
}

template <typename Descriptor>
Kernel finish(const Descriptor& pd, std::vector<Operand> operands) {
  return {dnnl::primitive(pd), std::move(operands), pd.scratchpad_desc(), pd.impl_info_str()};
}

Kernel make_forward(const Convolution& c) {
  const Axes weights = split_groups(c.rhs, c.group_axis, c.groups);
  const Pad padding = fit_padding(c, c.lhs, weights, c.out);
  const auto attr = describe_epilogue(c.epilogue, c.out.sizes.size(), c.groups > 1 ? 3 : 1);
  const auto src = describe_activations(c.lhs, c.lhs_dtype), dst = describe_activations(c.out, c.out_dtype);
  const auto any = describe_any(weights, c.rhs_dtype);
  const auto bias = c.epilogue.has_bias ? memory::desc({c.out.sizes[1]}, memory::data_type::f32, Dims{1})
                                        : memory::desc();
  const dnnl::convolution_forward::primitive_desc pd(
      cpu(), dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, src, any, bias, dst,
      c.strides, count_gaps(c.dilation), padding.first, padding.second, attr);
  Kernel kernel = finish(pd, {bring(DNNL_ARG_SRC, describe(c.lhs, c.lhs_dtype), pd.src_desc()),
                              bring(DNNL_ARG_WEIGHTS, describe(weights, c.rhs_dtype), pd.weights_desc()),
                              bring(DNNL_ARG_DST, describe(c.out, c.out_dtype), pd.dst_desc(), true)});
  add_epilogue(c.epilogue, c.out.sizes.size(), bias, kernel);
  return kernel;
}

// oneDNN describes a gradient beside the forward convolution that it belongs to.
dnnl::convolution_forward::primitive_desc hint(const memory::desc& src, const memory::desc& weights,
                                               const memory::desc& dst, const Convolution& c,
                                               const Pad& padding) {
  return {cpu(), dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, src, weights, dst,
          c.strides, count_gaps(c.dilation), padding.first, padding.second};
}

Kernel make_inputs(const Convolution& c) {
  const Axes weights = split_groups(c.rhs, c.group_axis, c.groups);
  const Pad padding = fit_padding(c, c.out, weights, c.lhs);
  const auto src = describe_activations(c.out, c.out_dtype), dst = describe_activations(c.lhs, c.lhs_dtype);
  const auto any = describe_any(weights, c.rhs_dtype);
  const auto forward = hint(describe_activations(c.out, c.lhs_dtype), any, dst, c, padding);
  const dnnl::convolution_backward_data::primitive_desc pd(
      cpu(), dnnl::algorithm::convolution_direct, src, any, dst, c.strides, count_gaps(c.dilation),
      padding.first, padding.second, forward, describe_epilogue({}, 0, 0));
  return finish(pd,
                {bring(DNNL_ARG_DIFF_DST, describe(c.lhs, c.lhs_dtype), pd.diff_dst_desc()),
                 bring(DNNL_ARG_WEIGHTS, describe(weights, c.rhs_dtype), pd.weights_desc()),
                 bring(DNNL_ARG_DIFF_SRC, describe(c.out, c.out_dtype), pd.diff_src_desc(), true)});
}

Kernel make_weights(const Convolution& c) {
  const Axes weights = split_groups(c.out, c.group_axis, c.groups);
  const Pad padding = fit_padding(c, c.lhs, weights, c.rhs);
  const auto src = describe_activations(c.lhs, c.lhs_dtype), dst = describe_activations(c.rhs, c.rhs_dtype);
  const auto forward = hint(src, describe_any(weights, c.lhs_dtype), dst, c, padding);
  const dnnl::convolution_backward_weights::primitive_desc pd(
      cpu(), dnnl::algorithm::convolution_direct, src, describe_any(weights, c.out_dtype), dst, c.strides,
      count_gaps(c.dilation), padding.first, padding.second, forward, describe_epilogue({}, 0, 0));
  return finish(pd, {bring(DNNL_ARG_SRC, describe(c.lhs, c.lhs_dtype), pd.src_desc()),
                     bring(DNNL_ARG_DIFF_DST, describe(c.rhs, c.rhs_dtype), pd.diff_dst_desc()),
                     bring(DNNL_ARG_DIFF_WEIGHTS, describe(weights, c.out_dtype), pd.diff_weights_desc(),
                           true)});
}

}  // namespace

Roles name_roles(Direction direction) {
  switch (direction) {
    case Direction::kForward:
      return {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    case Direction::kInputs:
      return {DNNL_ARG_DIFF_DST, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_SRC};
    case Direction::kWeights:
      return {DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS};
  }
  refuse("a direction that does not exist");
}

Kernel make_convolution(const Convolution& c) {
  switch (c.direction) {
    case Direction::kForward:
      return make_forward(c);
    case Direction::kInputs:
      return make_inputs(c);
    case Direction::kWeights:
      return make_weights(c);
  }
  refuse("a direction that does not exist");
}

}  // namespace jaxaccel
