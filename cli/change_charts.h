#pragma once

#include <span>
#include <string>

#include "cli/chart.h"
#include "cli/metric_rows.h"

namespace nibble {

/// A run under the name that its curves have.
struct LabelledRun {
  std::string label;
  MetricTable table;
};

/// What of the published weights a step changes, in powers of ten of the share: of one run codes,
/// scales and bytes, of several runs the codes (or bytes, where there are none). No series if the
/// runs have no such columns.
Chart changes_by_step(std::span<const LabelledRun> runs);
/// The same for each decoder layer, the mean over all steps (logging.changes_by_layer).
Chart changes_by_layer(std::span<const LabelledRun> runs);

}  // namespace nibble
