#include "core/checkpoint/weights_digest.h"

#include "core/base/fail.h"

namespace nibble {

void WeightsDigest::add(const std::string& name, std::span<const std::byte> bytes) {
  NIBBLE_CHECK(last_name_ < name, "tensor '{}' after '{}'", name, last_name_);
  last_name_ = name;
  if (!name.ends_with(".weight_shape")) sha_.update(bytes);
}

}  // namespace nibble
