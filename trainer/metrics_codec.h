#pragma once

#include "trainer/trainer.h"

namespace nibble {

namespace v1 {
class TrainResponse;
}

/// The figures of a step under the names of metrics.jsonl; `by_layer`: what it changed also for
/// each layer.
void encode_metrics(const SupervisedMetrics& m, bool by_layer, v1::TrainResponse& response);
void encode_metrics(const TrainMetrics& m, bool by_layer, v1::TrainResponse& response);

}  // namespace nibble
