// The calls that XLA makes.

#include <algorithm>
#include <cstdint>
#include <string>

#include "convolution.h"
#include "matmul.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace jaxaccel {

namespace {

namespace ffi = xla::ffi;
using Numbers = ffi::Span<const int64_t>;
using Buffers = std::unordered_map<int, void*>;

// What the arguments behind the two operands are. The numbers are those of jaxaccel's Python.
enum Extra : int64_t { kScale, kBias, kZero, kAddend, kLow, kHigh, kDivisor, kOutputZero };

Dims to_dims(Numbers numbers) { return {numbers.begin(), numbers.end()}; }

bool is_of(const ffi::AnyBuffer& buffer, ffi::DataType dtype, size_t count) {
  return buffer.element_type() == dtype && buffer.element_count() == count;
}

// Adds what an argument means to the epilogue, and gives the primitive's name of it.
int add_extra(Extra extra, const ffi::AnyBuffer& buffer, Numbers out_spec, const Axes& out, size_t features,
              Epilogue& e) {
  const size_t count = buffer.element_count();
  auto expect = [](bool is_right, const char* reason) {
    if (!is_right) refuse(reason);
  };
  const auto f32 = ffi::DataType::F32, s32 = ffi::DataType::S32;
  switch (extra) {
    case kScale:
      expect(is_of(buffer, f32, 1) || is_of(buffer, f32, features), "one float32 scale, or one a feature");
      e.scales = count;
      return kScales;
    case kBias:
      expect(is_of(buffer, f32, features), "a bias of float32, one a feature");
      e.has_bias = true;
      return DNNL_ARG_BIAS;
    case kZero:
      expect(is_of(buffer, s32, 1), "one int32 zero point of the inputs");
      e.has_zero_point = true;
      return kZeroPoint;
    case kAddend: {
      const Axes axes = permute_axes(buffer.dimensions(), out_spec);
      expect(axes.sizes == out.sizes, "an addend of the shape of the result");
      e.addend = describe(axes, convert_dtype(buffer.element_type()));
      return name_post_operation(0);
    }
    case kLow:
      expect(is_of(buffer, f32, 1), "one float32 lower bound");
      e.has_low = true;
      return name_post_operation(e.addend.has_value());
    case kHigh:
      expect(is_of(buffer, f32, 1), "one float32 upper bound");
      e.has_high = true;
      return name_post_operation(e.addend.has_value() + e.has_low);
    case kDivisor:
      expect(is_of(buffer, f32, 1), "one float32 scale of the result");
      e.has_out_scale = true;
      return kOutScale;
    case kOutputZero:
      expect(is_of(buffer, s32, 1), "one int32 zero point of the result");
      e.has_out_zero = true;
      return kOutZero;
  }
  refuse("an argument that does not exist");
}

void add_extras(ffi::RemainingArgs args, Numbers extras, Numbers out_spec, const Axes& out, size_t features,
                Epilogue& epilogue, Buffers& buffers, Key& key) {
  if (args.size() != 2 + extras.size()) refuse("two operands and the extras that are named");
  for (size_t k = 0; k < extras.size(); ++k) {
    const auto buffer = args.get<ffi::AnyBuffer>(k + 2).value();
    const auto extra = static_cast<Extra>(extras[k]);
    buffers[add_extra(extra, buffer, out_spec, out, features, epilogue)] = buffer.untyped_data();
    key.add(extras[k]).add(buffer.element_type()).add(buffer.element_count());
  }
}

double count_elements(const Axes& axes) {
  double count = 1;
  for (int64_t size : axes.sizes) count *= size;
  return count;
}

double count_multiplications(const Convolution& c) {
  const Axes& dst = c.direction == Direction::kForward ? c.out : c.direction == Direction::kInputs ? c.lhs : c.rhs;
  const Axes& weights = c.direction == Direction::kWeights ? c.out : c.rhs;
  return count_elements(dst) * count_elements(weights) / dst.sizes[1];
}

template <typename Body>
ffi::Error guard(const char* name, Body body) {
  try {
    body();
    return ffi::Error::Success();
  } catch (const dnnl::error& error) {
    const auto code = error.status == dnnl_unimplemented ? ffi::ErrorCode::kUnimplemented
                      : error.status == dnnl_out_of_memory ? ffi::ErrorCode::kResourceExhausted
                                                           : ffi::ErrorCode::kInvalidArgument;
    return ffi::Error(code, std::string(name) + " by oneDNN: " + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, std::string(name) + " by oneDNN: no memory is left");
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string(name) + " by oneDNN: " + error.what());
  }
}

void check_ranks(const Convolution& c) {
  const size_t spatial = c.strides.size();
  if (c.lhs.sizes.size() != spatial + 2 || c.rhs.sizes.size() != spatial + 2 ||
      c.out.sizes.size() != spatial + 2 || c.dilation.size() != spatial || c.padding.size() != spatial)
    refuse("a stride, a dilation and a padding for each spatial axis");
}

// The kernel of a convolution; `key` has what its epilogue is made of.
std::shared_ptr<const Kernel> find_convolution(const Convolution& c, Key& key) {
  key.add(c.direction).add(c.groups).add(c.group_axis).add(c.epilogue.has_relu);
  const int threads = choose_threads(count_multiplications(c), c.lhs_dtype);
  key.add(threads);
  for (const Axes* axes : {&c.lhs, &c.rhs, &c.out}) key.add_all(axes->sizes).add_all(axes->strides);
  key.add(c.lhs_dtype).add(c.rhs_dtype).add(c.out_dtype);
  key.add_all(c.strides).add_all(c.dilation).add_all(c.padding);
  return kernels().find_or_make(key, [&] {
    const ThreadsInUse in_use(threads);
    Kernel kernel = make_convolution(c);
    kernel.threads = threads;
    return kernel;
  });
}

ffi::Error convolve(ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> out,
                    int64_t direction, int64_t groups, int64_t group_axis, Numbers lhs_spec, Numbers rhs_spec,
                    Numbers out_spec, Numbers strides, Numbers dilation, Numbers padding, Numbers extras,
                    bool relu) {
  return guard("convolution", [&] {
    if (args.size() < 2) refuse("two operands");
    const auto lhs = args.get<ffi::AnyBuffer>(0).value(), rhs = args.get<ffi::AnyBuffer>(1).value();
    if (groups < 1 || group_axis < 0 || group_axis > 1) refuse("groups of an axis of the weights");
    Convolution c{static_cast<Direction>(direction), groups, group_axis,
                  permute_axes(lhs.dimensions(), lhs_spec), permute_axes(rhs.dimensions(), rhs_spec),
                  permute_axes(out->dimensions(), out_spec), convert_dtype(lhs.element_type()),
                  convert_dtype(rhs.element_type()), convert_dtype(out->element_type()), to_dims(strides),
                  to_dims(dilation), to_dims(padding), {}};
    check_ranks(c);
    c.epilogue.has_relu = relu;
    const Roles roles = name_roles(c.direction);
    Buffers buffers{{roles.lhs, lhs.untyped_data()},
                                           {roles.rhs, rhs.untyped_data()},
                                           {roles.out, out->untyped_data()}};
    Key key("convolution");
    add_extras(args, extras, out_spec, c.out, c.out.sizes[1], c.epilogue, buffers, key);
    run(find_convolution(c, key), buffers);
  });
}

ffi::Error multiply(ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> out, Numbers lhs_spec, Numbers rhs_spec,
                    Numbers out_spec, Numbers extras, bool relu) {
  return guard("matrix product", [&] {
    if (args.size() < 2) refuse("two operands");
    const auto lhs = args.get<ffi::AnyBuffer>(0).value(), rhs = args.get<ffi::AnyBuffer>(1).value();
    Product p{permute_axes(lhs.dimensions(), lhs_spec),
              permute_axes(rhs.dimensions(), rhs_spec),
              permute_axes(out->dimensions(), out_spec),
              convert_dtype(lhs.element_type()),
              convert_dtype(rhs.element_type()),
              convert_dtype(out->element_type()),
              {}};
    const size_t rank = p.out.sizes.size();
    if (rank < 2 || p.lhs.sizes.size() != rank || p.rhs.sizes.size() != rank) refuse("matrices, or batches of them");
    p.epilogue.has_relu = relu;
    Buffers buffers{{DNNL_ARG_SRC, lhs.untyped_data()},
                    {DNNL_ARG_WEIGHTS, rhs.untyped_data()},
                    {DNNL_ARG_DST, out->untyped_data()}};
    Key key("product");
    add_extras(args, extras, out_spec, p.out, p.out.sizes[rank - 1], p.epilogue, buffers, key);
    const int threads = choose_threads(count_elements(p.out) * p.lhs.sizes[rank - 1], p.lhs_dtype);
    key.add(relu).add(threads).add(p.lhs_dtype).add(p.rhs_dtype).add(p.out_dtype);
    for (const Axes* axes : {&p.lhs, &p.rhs, &p.out}) key.add_all(axes->sizes).add_all(axes->strides);
    auto make = [&] {
      const ThreadsInUse in_use(threads);
      Kernel kernel = make_product(p);
      kernel.threads = threads;
      return kernel;
    };
    run(kernels().find_or_make(key, make), buffers);
  });
}

// Reads `rank` numbers, and goes on behind them.
Dims take(const int64_t*& numbers, int64_t rank) {
  Dims taken(numbers, numbers + rank);
  numbers += rank;
  return taken;
}

Axes take_axes(const int64_t*& numbers, int64_t rank) {
  const Dims sizes = take(numbers, rank), spec = take(numbers, rank);
  return permute_axes(Numbers(sizes.data(), sizes.size()), Numbers(spec.data(), spec.size()));
}

}  // namespace

}  // namespace jaxaccel

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxaccel_onednn_convolution, jaxaccel::convolve,
                              xla::ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("direction")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("group_axis")
                                  .Attr<jaxaccel::Numbers>("lhs_spec")
                                  .Attr<jaxaccel::Numbers>("rhs_spec")
                                  .Attr<jaxaccel::Numbers>("out_spec")
                                  .Attr<jaxaccel::Numbers>("strides")
                                  .Attr<jaxaccel::Numbers>("dilation")
                                  .Attr<jaxaccel::Numbers>("padding")
                                  .Attr<jaxaccel::Numbers>("extras")
                                  .Attr<bool>("relu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxaccel_onednn_product, jaxaccel::multiply,
                              xla::ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<jaxaccel::Numbers>("lhs_spec")
                                  .Attr<jaxaccel::Numbers>("rhs_spec")
                                  .Attr<jaxaccel::Numbers>("out_spec")
                                  .Attr<jaxaccel::Numbers>("extras")
                                  .Attr<bool>("relu"));

extern "C" const char* jaxaccel_onednn_isa() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "SSE41";
    case dnnl::cpu_isa::avx:
      return "AVX";
    case dnnl::cpu_isa::avx2:
      return "AVX2";
    case dnnl::cpu_isa::avx2_vnni:
      return "AVX2_VNNI";
    case dnnl::cpu_isa::avx512_core:
      return "AVX512_CORE";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "AVX512_CORE_VNNI";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "AVX512_CORE_BF16";
    case dnnl::cpu_isa::avx512_core_fp16:
      return "AVX512_CORE_FP16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "AVX512_CORE_AMX";
    default:
      return "another";
  }
}

// Writes the name of the implementation that oneDNN has for a convolution without an epilogue; nothing where it has none.
// Numbers are the direction, groups, their axis and the rank; of each of the three arrays its type (as XLA numbers them),
// sizes and order of axes; then strides, dilation and padding.
extern "C" void jaxaccel_onednn_find_implementation(const int64_t* numbers, char* name, size_t size) {
  using namespace jaxaccel;
  name[0] = 0;
  try {
    Convolution c{};
    c.direction = static_cast<Direction>(numbers[0]);
    c.groups = numbers[1];
    c.group_axis = numbers[2];
    const int64_t rank = numbers[3];
    const int64_t* rest = numbers + 4;
    Axes* axes[3] = {&c.lhs, &c.rhs, &c.out};
    dnnl::memory::data_type* dtypes[3] = {&c.lhs_dtype, &c.rhs_dtype, &c.out_dtype};
    for (int k = 0; k < 3; ++k) {
      *dtypes[k] = convert_dtype(static_cast<xla::ffi::DataType>(*rest++));
      *axes[k] = take_axes(rest, rank);
    }
    c.strides = take(rest, rank - 2);
    c.dilation = take(rest, rank - 2);
    c.padding = take(rest, rank - 2);
    check_ranks(c);
    Key key("convolution");
    const auto kernel = find_convolution(c, key);
    name[kernel->implementation.copy(name, size - 1)] = 0;
  } catch (const std::exception&) {
    name[0] = 0;
  }
}

extern "C" int jaxaccel_onednn_threads() { return jaxaccel::count_threads(); }

#pragma GCC visibility pop
