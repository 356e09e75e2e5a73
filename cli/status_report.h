#pragma once

#include <string>

#include "cli/live_status.h"
#include "cli/run_comparison.h"
#include "cli/run_record.h"
#include "core/base/json.h"

namespace nibble {

/// One object; its keys are stable, and absent values are null.
OrderedJson status_json(const RunRecord& record, const LiveStatus& live);

/// The same for people: a few lines and, of a live run, a table of its workers.
std::string status_text(const RunRecord& record, const LiveStatus& live);

/// A run beside another: an object under stable keys, and a table for people.
OrderedJson comparison_json(const RunComparison& comparison);
std::string comparison_text(const RunComparison& comparison);

}  // namespace nibble
