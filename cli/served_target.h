#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/model_flags.h"
#include "cli/serve_bench.h"
#include "core/http/http_client.h"

namespace nibble {

/// The server that a benchmark measures: its own, in this process, or one at a URL.
class ServedTarget {
 public:
  /// Returns once it serves. `model` null: only the server knows it.
  ServedTarget(const ServeBenchFlags& flags, const std::shared_ptr<const LoadedModel>& model);

  const HttpTarget& address() const { return address_; }
  bool is_own() const { return own_ != nullptr; }
  /// What it calls its model, and the positions of a sequence; 0: it does not say.
  const std::string& model_name() const { return model_name_; }
  int64_t max_positions() const { return max_positions_; }
  /// A whole number of /metrics; nullopt if it has none of this name.
  std::optional<int64_t> metric(const std::string& name) const;
  /// Fails if one of our own still holds requests some seconds after all are answered.
  void check_idle() const;
  /// Ends our own; rethrows what ended its engine, if something did.
  void stop();

 private:
  void wait_until_ready() const;
  void ask_model();

  std::unique_ptr<ServeStack> own_;  // null: at a URL
  HttpTarget address_;
  std::string model_name_;
  int64_t max_positions_ = 0;
};

}  // namespace nibble
