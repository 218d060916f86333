#include "packing.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "threads.h"

namespace jaxaccel {

namespace {

constexpr size_t kCapacity = size_t{1} << 30;
constexpr size_t kMaxEntries = 4096;
constexpr int kMaxChanges = 2;            // weights that changed as often are not kept again
constexpr size_t kSampledWords = 64;
constexpr size_t kChunk = size_t{1} << 18;  // bytes that a thread compares at once

// A few words of the weights, spread over all of them, as one number: whoever changes it has changed the weights.
uint64_t sample_words(const void* data, size_t size) {
  uint64_t mixed = 1469598103934665603ull;
  const size_t words = size / sizeof(uint64_t), step = std::max<size_t>(1, words / kSampledWords);
  for (size_t k = 0; k < words; k += step) {
    uint64_t word;
    std::memcpy(&word, static_cast<const char*>(data) + k * sizeof(word), sizeof(word));
    mixed = (mixed ^ word) * 1099511628211ull;
  }
  return mixed;
}

bool are_equal(const void* a, const void* b, size_t size) {
  const int64_t chunks = static_cast<int64_t>((size + kChunk - 1) / kChunk);
  std::atomic<bool> equal{true};
#pragma omp parallel for if (chunks > 1)
  for (int64_t k = 0; k < chunks; ++k) {
    const size_t start = k * kChunk, count = std::min(kChunk, size - start);
    if (equal.load(std::memory_order_relaxed) &&
        std::memcmp(static_cast<const char*>(a) + start, static_cast<const char*>(b) + start, count) != 0)
      equal = false;
  }
  return equal;
}

}  // namespace

const dnnl::memory* PackedWeights::find(const std::shared_ptr<const Kernel>& kernel, const Operand& operand,
                                        dnnl::memory& given, dnnl::stream& stream) {
  const void* data = given.get_data_handle();
  const size_t size = operand.given.get_size();
  Entry& entry = enter(kernel, data);
  const uint64_t sample = sample_words(data, size);
  const bool is_same = entry.sample == sample;
  entry.sample = sample;
  if (entry.raw.empty()) {
    if (!is_same || entry.changes >= kMaxChanges) return nullptr;
    keep(entry, operand, given, stream);
    return &entry.packed;
  }
  if (is_same && are_equal(entry.raw.data(), data, size)) return &entry.packed;
  forget(entry);
  ++entry.changes;
  return nullptr;
}

PackedWeights::Entry& PackedWeights::enter(const std::shared_ptr<const Kernel>& kernel, const void* address) {
  const Place place{kernel.get(), address};
  auto found = by_place_.find(place);
  if (found != by_place_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
    return entries_.front();
  }
  Entry entry;
  entry.kernel = kernel;
  entry.address = address;
  entries_.push_front(std::move(entry));
  by_place_[place] = entries_.begin();
  make_room(entries_.front());
  return entries_.front();
}

void PackedWeights::keep(Entry& entry, const Operand& operand, dnnl::memory& given,
                         dnnl::stream& stream) {
  const auto* data = static_cast<const uint8_t*>(given.get_data_handle());
  dnnl::memory packed(operand.wanted, cpu());
  operand.reorder.execute(stream, given, packed);
  stream.wait();
  entry.raw.assign(data, data + operand.given.get_size());
  entry.packed = packed;
  entry.bytes = operand.given.get_size() + operand.wanted.get_size();
  bytes_ += entry.bytes;
  make_room(entry);
}

void PackedWeights::forget(Entry& entry) {
  std::vector<uint8_t>().swap(entry.raw);
  entry.packed = dnnl::memory();
  bytes_ -= entry.bytes;
  entry.bytes = 0;
}

void PackedWeights::make_room(const Entry& kept) {
  while ((bytes_ > capacity_ || entries_.size() > kMaxEntries) && &entries_.back() != &kept) {
    Entry& oldest = entries_.back();
    forget(oldest);
    by_place_.erase({oldest.kernel.get(), oldest.address});
    entries_.pop_back();
  }
}

PackedWeights& packed_weights() {
  static PackedWeights* weights = new PackedWeights(kCapacity);
  return *weights;
}

}  // namespace jaxaccel
