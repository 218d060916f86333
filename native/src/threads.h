// Who computes: one kernel at a time, on all cores of OpenMP.
#pragma once

#include <unordered_map>

#include "cache.h"

namespace jaxaccel {

const dnnl::engine& cpu();

// Runs a kernel on the buffers of its arguments. Blocks until it is done. Throws dnnl::error and std::bad_alloc.
void run(const std::shared_ptr<const Kernel>& shared, const std::unordered_map<int, void*>& buffers);

int count_threads();

}  // namespace jaxaccel
