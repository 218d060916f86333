// Matrix products, of many matrices at once too.
#pragma once

#include "cache.h"
#include "descriptors.h"
#include "epilogue.h"

namespace jaxaccel {

struct Product {
  Axes lhs, rhs, out;  // (batch, rows, sum), (batch, sum, columns), (batch, rows, columns); without a batch two axes
  dnnl::memory::data_type lhs_dtype, rhs_dtype, out_dtype;
  Epilogue epilogue;
};

Kernel make_product(const Product& p);

}  // namespace jaxaccel
