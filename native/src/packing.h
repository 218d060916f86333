// Weights that do not change, kept in the layout that a kernel wants.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "cache.h"

namespace jaxaccel {

// Weights that were the same twice in a row at an address are kept, as they are and packed. An address may be used
// again for others, so all bytes are compared at each call: that takes a fraction of the time of packing them. Weights
// in training change between calls: of those only a few words are read. Only who has the turn (threads.cc) uses it.
class PackedWeights {
 public:
  explicit PackedWeights(size_t capacity) : capacity_(capacity) {}

  // The packed weights, or nullptr where they must be packed anew. The memory lives until the next call.
  const dnnl::memory* find(const std::shared_ptr<const Kernel>& kernel, const Operand& operand,
                           dnnl::memory& given, dnnl::stream& stream);

 private:
  struct Entry {
    std::shared_ptr<const Kernel> kernel;  // held, so that no other kernel gets its address
    const void* address;
    uint64_t sample = 0;
    int changes = 0;
    std::vector<uint8_t> raw;
    dnnl::memory packed;
    size_t bytes = 0;
  };
  using Place = std::pair<const Kernel*, const void*>;

  Entry& enter(const std::shared_ptr<const Kernel>& kernel, const void* address);
  void keep(Entry& entry, const Operand& operand, dnnl::memory& given, dnnl::stream& stream);
  void forget(Entry& entry);
  void make_room(const Entry& kept);

  const size_t capacity_;  // bytes
  size_t bytes_ = 0;
  std::list<Entry> entries_;  // the last used first
  std::map<Place, std::list<Entry>::iterator> by_place_;
};

PackedWeights& packed_weights();

}  // namespace jaxaccel
