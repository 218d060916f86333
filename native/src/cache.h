// Compiled kernels by all that they depend on.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

namespace jaxaccel {

// One argument of a primitive: as the caller has it, and as the primitive wants it.
struct Operand {
  int argument;  // DNNL_ARG_...
  dnnl::memory::desc given;
  dnnl::memory::desc wanted;
  bool is_output = false;
  bool is_weights = false;  // which may be the same for many calls
  dnnl::reorder reorder;  // empty where both are the same
  bool is_reordered() const { return given != wanted; }
};

struct Kernel {
  dnnl::primitive primitive;
  std::vector<Operand> operands;
  dnnl::memory::desc scratchpad;
  std::string implementation;  // oneDNN's name of it
  int threads = 1;             // that compute it
};

// Everything that decides what a kernel computes, as bytes.
class Key {
 public:
  explicit Key(const char* name) : bytes_(name) {}
  template <typename T>
  Key& add(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  template <typename Values>
  Key& add_all(const Values& values) {
    add(static_cast<size_t>(values.size()));
    for (const auto& value : values) add(value);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// The kernels that were used last. Safe to call from several threads.
class Cache {
 public:
  explicit Cache(size_t capacity) : capacity_(capacity) {}
  std::shared_ptr<const Kernel> find_or_make(const Key& key, const std::function<Kernel()>& make);

 private:
  using Entry = std::pair<std::string, std::shared_ptr<const Kernel>>;
  const size_t capacity_;
  std::mutex mutex_;
  std::list<Entry> entries_;  // the last used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
};

Cache& kernels();

}  // namespace jaxaccel
