#include "threads.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <new>

#include "packing.h"

namespace jaxaccel {

namespace {

constexpr size_t kAlignment = 64;

// OpenMP keeps a team of threads for each thread that calls it. Two kernels at once would share the cores between
// twice as many threads as there are cores, so that each would take more than twice as long.
std::mutex& turn() {
  static std::mutex* mutex = new std::mutex;
  return *mutex;
}

std::atomic<bool> is_forked{false};

// A child has none of the threads of its parent: OpenMP would wait for them without end. It gets one thread.
void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork([] { turn().lock(); }, [] { turn().unlock(); },
                   [] {
                     turn().unlock();
                     is_forked = true;
                   });
  });
}

// Memory for what kernels need beside their arguments: that of the largest so far, and never given back. Only who has
// the turn uses it. XLA's own allocator gives none to calls on a CPU, and the C library's would be cleared anew each
// time, page by page.
class Scratch {
 public:
  void* reserve(size_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      data_ = std::aligned_alloc(kAlignment, size);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

Scratch& scratch() {
  static Scratch* scratch = new Scratch;
  return *scratch;
}

size_t align(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

size_t count_scratch(const Kernel& kernel) {
  size_t size = align(kernel.scratchpad.get_size());
  for (const Operand& operand : kernel.operands) {
    if (operand.is_reordered()) size += align(operand.wanted.get_size());
  }
  return size;
}

constexpr double kSecondsWorthAThread = 150e-6;

// Multiplications a second of one core, about: by the instructions that the processor has.
double find_rate(dnnl::memory::data_type dtype) {
  const bool has_tiles = dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_amx;
  switch (dtype) {
    case dnnl::memory::data_type::s8:
    case dnnl::memory::data_type::u8:
      return has_tiles ? 800e9 : 200e9;
    case dnnl::memory::data_type::bf16:
      return has_tiles ? 400e9 : 80e9;
    default:
      return 60e9;
  }
}

struct Placed {
  const Operand* operand;
  dnnl::memory given;
  dnnl::memory wanted;
};

}  // namespace

const dnnl::engine& cpu() {
  static const dnnl::engine* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

int count_threads() { return is_forked ? 1 : omp_get_max_threads(); }

int choose_threads(double multiplications, dnnl::memory::data_type dtype) {
  const double seconds = multiplications / find_rate(dtype);
  const double worth = 1 + std::floor(seconds / kSecondsWorthAThread);
  return static_cast<int>(std::min<double>(worth, count_threads()));
}

ThreadsInUse::ThreadsInUse(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
ThreadsInUse::~ThreadsInUse() { omp_set_num_threads(before_); }

void run(const std::shared_ptr<const Kernel>& shared, const std::unordered_map<int, void*>& buffers) {
  const Kernel& kernel = *shared;
  watch_forks();
  std::lock_guard<std::mutex> lock(turn());
  const ThreadsInUse threads(is_forked ? 1 : kernel.threads);
  char* free = static_cast<char*>(scratch().reserve(count_scratch(kernel)));
  auto take = [&free](const dnnl::memory::desc& desc) {
    dnnl::memory taken(desc, cpu(), free);
    free += align(desc.get_size());
    return taken;
  };
  dnnl::stream stream(cpu());
  std::vector<Placed> placed;
  std::unordered_map<int, dnnl::memory> arguments;
  for (const Operand& operand : kernel.operands) {
    dnnl::memory given(operand.given, cpu(), buffers.at(operand.argument));
    if (operand.is_weights && operand.is_reordered()) {
      if (const dnnl::memory* packed = packed_weights().find(shared, operand, given, stream)) {
        arguments[operand.argument] = *packed;
        continue;
      }
    }
    dnnl::memory wanted = operand.is_reordered() ? take(operand.wanted) : given;
    placed.push_back({&operand, given, wanted});
    arguments[operand.argument] = wanted;
  }
  if (kernel.scratchpad.get_size() > 0) arguments[DNNL_ARG_SCRATCHPAD] = take(kernel.scratchpad);

  for (Placed& p : placed) {
    if (p.operand->is_reordered() && !p.operand->is_output) p.operand->reorder.execute(stream, p.given, p.wanted);
  }
  kernel.primitive.execute(stream, arguments);
  for (Placed& p : placed) {
    if (p.operand->is_reordered() && p.operand->is_output) p.operand->reorder.execute(stream, p.wanted, p.given);
  }
  stream.wait();
}

}  // namespace jaxaccel
