#include "weight_sync/frozen_rows.h"

namespace nibble {

FrozenRows::FrozenRows(const ParameterTable& table, const QuantizationPlan& plan,
                       DeviceKind device) {
  for (int64_t p = 0; p < table.size(); ++p) {
    const ParameterSpec& parameter = table.at(p);
    parameters.push_back(StoredParameter::make(parameter, parameter.is_frozen ? parameter.rows : 0,
                                               plan, plan.quantized[static_cast<size_t>(p)],
                                               device));
  }
}

std::vector<size_t> travelling_slices(const Manifest& manifest, const Edge& edge,
                                      bool omits_frozen) {
  std::vector<size_t> places;
  for (size_t i = 0; i < edge.slices.size(); ++i) {
    if (omits_frozen && manifest.at(edge.slices[i].slice.tensor).is_frozen) continue;
    places.push_back(i);
  }
  return places;
}

int64_t travelling_bytes(const Manifest& manifest, const Edge& edge, bool omits_frozen) {
  int64_t bytes = 0;
  for (const size_t i : travelling_slices(manifest, edge, omits_frozen)) {
    bytes += edge.slices[i].bytes();
  }
  return bytes;
}

}  // namespace nibble
