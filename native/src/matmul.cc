#include "matmul.h"

#include "threads.h"

namespace jaxaccel {

using dnnl::memory;

Kernel make_product(const Product& p) {
  const size_t rank = p.out.sizes.size();
  const auto src = describe(p.lhs, p.lhs_dtype), dst = describe(p.out, p.out_dtype);
  // Weights are taken as they are: packing them first gained nothing for any number of rows that was measured.
  const auto weights = describe(p.rhs, p.rhs_dtype);
  Dims one_row(rank, 1);
  one_row[rank - 1] = p.out.sizes[rank - 1];
  const auto bias =
      p.epilogue.has_bias ? memory::desc(one_row, memory::data_type::f32, Dims(rank, 1)) : memory::desc();
  const auto attr = describe_epilogue(p.epilogue, rank, 1 << (rank - 1));
  const dnnl::matmul::primitive_desc pd(cpu(), src, weights, bias, dst, attr);
  Kernel kernel{dnnl::primitive(pd),
                {bring(DNNL_ARG_SRC, src, pd.src_desc()), bring(DNNL_ARG_WEIGHTS, weights, pd.weights_desc()),
                 bring(DNNL_ARG_DST, dst, pd.dst_desc(), true)},
                pd.scratchpad_desc(),
                pd.impl_info_str()};
  add_epilogue(p.epilogue, rank, bias, kernel);
  return kernel;
}

}  // namespace jaxaccel
