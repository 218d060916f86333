// Who computes: one kernel at a time, on all cores of OpenMP.
#pragma once

#include <unordered_map>

#include "cache.h"

namespace jaxaccel {

const dnnl::engine& cpu();

// Runs a kernel on the buffers of its arguments, with as many threads as it was made for. Blocks until it is done.
// Throws dnnl::error and std::bad_alloc.
void run(const std::shared_ptr<const Kernel>& shared, const std::unordered_map<int, void*>& buffers);

// The threads that there are.
int count_threads();

// The threads that are worth their start for so many multiplications of operands of this type: a second one takes
// some 50 microseconds to wake.
int choose_threads(double multiplications, dnnl::memory::data_type dtype);

// Sets OpenMP's threads for this thread of the process, as long as it lives: kernels are made for the number that they
// run with.
class ThreadsInUse {
 public:
  explicit ThreadsInUse(int threads);
  ~ThreadsInUse();
  ThreadsInUse(const ThreadsInUse&) = delete;
  ThreadsInUse& operator=(const ThreadsInUse&) = delete;

 private:
  int before_;
};

}  // namespace jaxaccel
