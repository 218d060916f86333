#include "cache.h"

#include "threads.h"

namespace jaxaccel {

namespace {

constexpr size_t kCapacity = 4096;

}  // namespace

std::shared_ptr<const Kernel> Cache::find_or_make(const Key& key, const std::function<Kernel()>& make) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = by_key_.find(key.bytes());
    if (found != by_key_.end()) {
      entries_.splice(entries_.begin(), entries_, found->second);
      return found->second->second;
    }
  }
  // Made without the lock: a kernel that two threads make at once is made twice, and one of them is kept.
  auto made = std::make_shared<const Kernel>(make());
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = by_key_.find(key.bytes());
  if (found != by_key_.end()) return found->second->second;
  entries_.emplace_front(key.bytes(), made);
  by_key_[key.bytes()] = entries_.begin();
  if (entries_.size() > capacity_) {
    by_key_.erase(entries_.back().first);
    entries_.pop_back();
  }
  return made;
}

Cache& kernels() {
  // Never destroyed: threads of XLA may still run when the process ends.
  static Cache* cache = new Cache(kCapacity);
  return *cache;
}

}  // namespace jaxaccel
