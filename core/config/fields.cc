#include "core/config/fields.h"

#include "core/base/fail.h"

namespace nibble {

void FieldCollector::add(Field field) {
  for (const Field& other : fields_) {
    NIBBLE_CHECK(other.key != field.key, "configuration key '{}' is declared twice", field.key);
  }
  fields_.push_back(std::move(field));
}

}  // namespace nibble
