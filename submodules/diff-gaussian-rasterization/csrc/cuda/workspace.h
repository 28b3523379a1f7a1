// Parts of one allocation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dgr {

// Hands out 256-byte aligned parts of one allocation; with a null base it only measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    char* here = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (sizeof(T) * size_t(count) + 255) / 256 * 256;
    return reinterpret_cast<T*>(here);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace dgr
