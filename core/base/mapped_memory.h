#pragma once

#include <filesystem>

namespace nibble {

/// Where memory of DeviceKind::kMappedFile comes from, from now on: files in `directory`, reserved
/// on its disk, mapped, and unlinked at once, so that nothing is left however a process ends. The
/// system writes them out where RAM is short. Throws Error{kInvalidArgument} if it is no directory;
/// an allocation throws Error{kResourceExhausted} naming it when its disk is full. Any thread.
void use_mapped_memory(const std::filesystem::path& directory);

}  // namespace nibble
