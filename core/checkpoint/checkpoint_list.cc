#include "core/checkpoint/checkpoint_list.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";

// Nothing of other names, those of checkpoints being written among them.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string_view digits = std::string_view(name).substr(kPrefix.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return step;
}

}  // namespace

std::string checkpoint_name(int64_t step) { return fmt::format("{}{:06}", kPrefix, step); }

std::vector<CheckpointEntry> list_checkpoints(const fs::path& root) {
  std::vector<CheckpointEntry> entries;
  if (!fs::is_directory(root)) return entries;
  for (const auto& entry : fs::directory_iterator(root)) {
    const auto step = step_of(entry.path().filename().string());
    if (!step) continue;
    if (!fs::exists(entry.path() / "meta.json")) {
      get_logger("checkpoint")
          ->warn("'{}' has no meta.json and is passed over: it is damaged", entry.path().string());
      continue;
    }
    entries.push_back({*step, entry.path()});
  }
  // By number: from a million on names do not sort as text.
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

}  // namespace nibble
