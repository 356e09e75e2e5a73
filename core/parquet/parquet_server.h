#pragma once

#include <istream>
#include <ostream>

namespace nibble {

/// The body of the program `nibble-parquet`: answers requests, each a line
///   {"file": path, "columns": [names, the preferred one first], "rows": [numbers, rising]}
/// with the number of the file's rows on a line and then a JSON object on a line for each row
/// wanted, until `in` ends. An answer that cannot be given, or not to its end, closes with the line
/// "!why". The file of the request before stays open. Throws Error for what is no request.
void serve_parquet(std::istream& in, std::ostream& out);

}  // namespace nibble
