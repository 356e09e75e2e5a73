#include "core/parquet/parquet_server.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/json.h"
#include "core/parquet/parquet_reader.h"

namespace nibble {
namespace {

class ParquetServer {
 public:
  void answer(const Json& request, std::ostream& out) {
    const auto file = request.at("file").get<std::string>();
    if (!reader_ || file != file_) {
      reader_.reset();  // not two at a time
      reader_.emplace(file, request.at("columns").get<std::vector<std::string>>());
      file_ = file;
    }
    out << reader_->num_rows() << '\n';
    for (const Json& row : request.at("rows")) out << reader_->row_json(row.get<int64_t>()) << '\n';
  }

 private:
  std::string file_;
  std::optional<ParquetReader> reader_;
};

}  // namespace

void serve_parquet(std::istream& in, std::ostream& out) {
  ParquetServer server;
  std::string line;
  while (std::getline(in, line)) {
    const Json request = parse_json(line, "a request");
    try {
      server.answer(request, out);
    } catch (const Error& error) {
      std::string why = error.what();
      std::replace(why.begin(), why.end(), '\n', ' ');
      out << '!' << why << '\n';
    }
    out.flush();
  }
}

}  // namespace nibble
