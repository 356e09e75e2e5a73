#pragma once

#include <cstdint>

namespace nibble {

/// Memory of this process that is in RAM now; 0 where the system does not tell.
int64_t resident_bytes();

/// The most of it that there ever was; 0 where the system does not tell.
int64_t peak_resident_bytes();

/// The most of it that a series of looks has seen.
class PeakMemory {
 public:
  void look();
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace nibble
