#include "matmul.h"

#include "threads.h"

namespace jaxaccel {

using dnnl::memory;

Kernel make_product(const Product& p) {
  const size_t rank = p.out.sizes.size();
  const auto src = describe(p.lhs, p.lhs_dtype), dst = describe(p.out, p.out_dtype);
  // Weights that a whole batch shares may be packed; many small ones are taken as they are.
  const auto given = describe(p.rhs, p.rhs_dtype);
  const auto weights = rank == 2 ? describe_any(p.rhs, p.rhs_dtype) : given;
  Dims one_row(rank, 1);
  one_row[rank - 1] = p.out.sizes[rank - 1];
  const auto bias = p.epilogue.has_bias ? memory::desc(one_row, memory::data_type::f32, Dims(rank, 1)) : memory::desc();
  const auto attr = describe_epilogue(p.epilogue, rank, 1 << (rank - 1));
  const dnnl::matmul::primitive_desc pd(cpu(), src, weights, bias, dst, attr);
  Kernel kernel{dnnl::primitive(pd),
                {bring(DNNL_ARG_SRC, src, pd.src_desc()), bring(DNNL_ARG_WEIGHTS, given, pd.weights_desc()),
                 bring(DNNL_ARG_DST, dst, pd.dst_desc(), true)},
                pd.scratchpad_desc(),
                pd.impl_info_str()};
  add_epilogue(p.epilogue, rank, bias, kernel);
  return kernel;
}

}  // namespace jaxaccel
