#pragma once

#include <string>

#include "cli/live_status.h"
#include "cli/run_record.h"
#include "core/base/json.h"

namespace nibble {

/// One object; its keys are stable, and absent values are null.
OrderedJson status_json(const RunRecord& record, const LiveStatus& live);

/// The same for people: a few lines and, of a live run, a table of its workers.
std::string status_text(const RunRecord& record, const LiveStatus& live);

}  // namespace nibble
