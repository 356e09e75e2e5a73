#include "core/ops/dropped_values.h"

#include <utility>

#include "core/base/fail.h"
#include "core/tensor/check.h"

namespace nibble::ops {

void DroppedValues::add(const at::Tensor& value, Recipe recipe) {
  NIBBLE_CHECK(
      value.is_contiguous() && value.storage_offset() == 0 &&
          value.storage().nbytes() == static_cast<size_t>(value.numel()) * value.element_size(),
      "a part of a storage cannot be dropped: {}", describe(value));
  values_.push_back({value.storage(), value.storage().nbytes(), std::move(recipe)});
}

void DroppedValues::drop() {
  for (Value& value : values_) {
    value.storage.set_data_ptr_noswap(at::DataPtr(nullptr, value.storage.device()));
    value.storage.set_nbytes(0);
  }
}

void DroppedValues::restore() {
  for (Value& value : std::exchange(values_, {})) {
    const c10::Storage fresh = value.recipe().storage();
    NIBBLE_CHECK(fresh.nbytes() == value.bytes, "{} bytes were dropped, {} came back", value.bytes,
                 fresh.nbytes());
    value.storage.set_data_ptr_noswap(
        fresh.unsafeGetStorageImpl()->set_data_ptr(at::DataPtr(nullptr, fresh.device())));
    value.storage.set_nbytes(value.bytes);
  }
}

}  // namespace nibble::ops
