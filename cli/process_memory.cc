#include "cli/process_memory.h"

#include <sys/resource.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace nibble {

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t size_pages = 0;
  int64_t resident_pages = 0;
  if (!(statm >> size_pages >> resident_pages)) return 0;
  return resident_pages * ::sysconf(_SC_PAGESIZE);
}

void PeakMemory::look() { bytes_ = std::max(bytes_, resident_bytes()); }

int64_t peak_resident_bytes() {
  rusage usage{};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss * int64_t{1024} : 0;
}

}  // namespace nibble
