#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "core/base/device_memory.h"
#include "core/base/memory_count.h"

namespace nibble {

/// Owns `size()` elements on a device, contiguous; copies are deep. Elements of host arrays are
/// read and written in place; those of device arrays through data() by kernels, or with to().
/// A view owns nothing: it must not outlive the array that it was made of, and a copy of it is an
/// array of its own.
template <typename T>
class Array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  using value_type = T;

  Array() = default;
  explicit Array(DeviceKind device) : device_(device) {}
  /// `count` zeros.
  explicit Array(size_t count, DeviceKind device = DeviceKind::kCpu)
      : Array(uninitialized(count, device)) {
    if (count > 0) device_memory(device_).zero(data_, num_bytes());
  }
  /// Host elements, copied.
  explicit Array(std::span<const T> values, DeviceKind device = DeviceKind::kCpu)
      : Array(uninitialized(values.size(), device)) {
    if (size_ > 0) device_memory(device_).copy(data_, values.data(), num_bytes());
  }
  static Array uninitialized(size_t count, DeviceKind device = DeviceKind::kCpu) {
    Array array(device);
    array.allocate(count);
    return array;
  }
  Array(const Array& other) : Array(uninitialized(other.size_, other.device_)) {
    if (size_ > 0) device_memory(device_).copy(data_, other.data_, num_bytes());
  }
  Array(Array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        device_(other.device_),
        is_view_(other.is_view_) {}
  Array& operator=(Array other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(device_, other.device_);
    std::swap(is_view_, other.is_view_);
    return *this;
  }
  ~Array() {
    if (data_ == nullptr || is_view_) return;
    device_memory(device_).release(data_);
    memory_count(device_).subtract(num_bytes());
  }

  /// The same elements, where they are.
  Array view() {
    Array out(device_);
    out.data_ = data_;
    out.size_ = size_;
    out.is_view_ = true;
    return out;
  }
  /// The same elements on a device.
  Array to(DeviceKind device) const {
    Array out = uninitialized(size_, device);
    if (size_ > 0) {
      const DeviceKind copier = device_ == DeviceKind::kCpu ? device : device_;
      device_memory(copier).copy(out.data_, data_, num_bytes());
    }
    return out;
  }

  DeviceKind device() const { return device_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int64_t num_bytes() const { return static_cast<int64_t>(size_ * sizeof(T)); }
  T* data() { return data_; }
  const T* data() const { return data_; }

  /// New memory of `count` zeros, unless that is the size already. The old goes first.
  void resize(size_t count) {
    if (count == size_) return;
    *this = Array(device_);
    *this = Array(count, device_);
  }
  /// Host elements, copied to where they are, if as many are.
  void assign(std::span<const T> values) {
    if (values.size() != size_) {
      *this = Array(values, device_);
    } else if (size_ > 0) {
      device_memory(device_).copy(data_, values.data(), num_bytes());
    }
  }
  void fill_zero() {
    if (size_ > 0) device_memory(device_).zero(data_, num_bytes());
  }

  // Host arrays only.
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  friend bool operator==(const Array& a, const Array& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  void allocate(size_t count) {
    if (count == 0) return;
    data_ =
        static_cast<T*>(device_memory(device_).allocate(static_cast<int64_t>(count * sizeof(T))));
    size_ = count;
    memory_count(device_).add(num_bytes());
  }

  T* data_ = nullptr;
  size_t size_ = 0;
  DeviceKind device_ = DeviceKind::kCpu;
  bool is_view_ = false;
};

}  // namespace nibble
