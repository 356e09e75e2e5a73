#include "core/parquet/parquet_reader.h"

#include <arrow/io/file.h>
#include <arrow/memory_pool.h>
#include <arrow/record_batch.h>
#include <arrow/result.h>
#include <parquet/arrow/reader.h>
#include <parquet/arrow/schema.h>
#include <parquet/file_reader.h>
#include <parquet/metadata.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/data/record_file.h"
#include "core/parquet/arrow_json.h"

namespace nibble {
namespace {

constexpr int64_t kBatchRows = 64;
constexpr int64_t kMaxArrowBytes = 2LL << 30;
constexpr int64_t kMaxRows = int64_t{1} << 40;

[[noreturn]] void refuse(const std::string& why) {
  fail(ErrorCode::kInvalidArgument, "it cannot be read as Parquet: {}", why.substr(0, 500));
}

void check(const arrow::Status& status) {
  if (!status.ok()) refuse(status.ToString());
}

template <typename Value>
Value take(arrow::Result<Value> result) {
  check(result.status());
  return std::move(result).ValueUnsafe();
}

// What Arrow and the standard library throw over a damaged file becomes an Error.
template <typename Body>
auto guarded(Body&& body) {
  try {
    return body();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    refuse(error.what());
  }
}

void add_leaves(const parquet::arrow::SchemaField& field, std::vector<int>& leaves) {
  if (field.is_leaf()) leaves.push_back(field.column_index);
  for (const auto& child : field.children) add_leaves(child, leaves);
}

}  // namespace

struct ParquetReader::Parts {
  arrow::CappedMemoryPool pool{arrow::system_memory_pool(), kMaxArrowBytes};
  std::unique_ptr<parquet::arrow::FileReader> file;
  std::string column;
  std::vector<int> leaves;          // of the column
  std::vector<int64_t> group_ends;  // of row groups: rows up to and with it

  std::unique_ptr<arrow::RecordBatchReader> batches;  // of one row group; null: none is open
  int64_t group_end = 0;                              // of that group: a row of the file
  std::shared_ptr<arrow::RecordBatch> batch;          // null: before the first of the group
  int64_t batch_begin = 0;                            // rows of the file
  int64_t batch_end = 0;

  void open(const std::filesystem::path& path);
  void choose(const std::vector<std::string>& columns);
  void seek(int64_t row);
};

void ParquetReader::Parts::open(const std::filesystem::path& path) {
  parquet::ReaderProperties properties(&pool);
  properties.enable_buffered_stream();  // or a whole column of a row group is read at once
  properties.set_page_checksum_verification(true);
  parquet::ArrowReaderProperties arrow_properties(/*use_threads=*/false);
  arrow_properties.set_pre_buffer(false);
  arrow_properties.set_batch_size(kBatchRows);
  parquet::arrow::FileReaderBuilder builder;
  check(builder.Open(take(arrow::io::ReadableFile::Open(path.string(), &pool)), properties));
  builder.memory_pool(&pool)->properties(arrow_properties);
  file = take(builder.Build());
  const auto metadata = file->parquet_reader()->metadata();
  int64_t num_rows = 0;
  for (int g = 0; g < metadata->num_row_groups(); ++g) {
    const int64_t in_group = metadata->RowGroup(g)->num_rows();
    if (in_group < 0 || in_group > kMaxRows - num_rows) refuse("its row groups have no sane sizes");
    group_ends.push_back(num_rows += in_group);
  }
}

void ParquetReader::Parts::choose(const std::vector<std::string>& columns) {
  const auto& fields = file->manifest().schema_fields;
  for (const std::string& name : columns) {
    const auto found = std::find_if(fields.begin(), fields.end(),
                                    [&](const auto& field) { return field.field->name() == name; });
    if (found == fields.end()) continue;
    column = name;
    add_leaves(*found, leaves);
    return;
  }
  std::string known;
  for (const auto& field : fields) known += " '" + field.field->name() + "'";
  fail(ErrorCode::kInvalidArgument, "it has no column '{}'; its columns are{}",
       fmt::join(columns, "' or '"), known.substr(0, 300));
}

void ParquetReader::Parts::seek(int64_t row) {
  if (!batches || row < batch_begin || row >= group_end) {
    const auto end = std::upper_bound(group_ends.begin(), group_ends.end(), row);
    const auto group = static_cast<int>(end - group_ends.begin());
    batch.reset();
    batches = take(file->GetRecordBatchReader({group}, leaves));
    batch_begin = batch_end = group == 0 ? 0 : *std::prev(end);
    group_end = *end;
  }
  while (row >= batch_end) {
    check(batches->ReadNext(&batch));
    if (!batch || batch->num_rows() == 0 || batch->num_columns() != 1) {
      refuse("a row group has fewer rows than it says");
    }
    check(batch->Validate());
    batch_begin = batch_end;
    batch_end += batch->num_rows();
  }
}

ParquetReader::ParquetReader(const std::filesystem::path& file,
                             const std::vector<std::string>& columns)
    : parts_(std::make_unique<Parts>()) {
  guarded([&] {
    parts_->open(file);
    parts_->choose(columns);
  });
}

ParquetReader::~ParquetReader() = default;

int64_t ParquetReader::num_rows() const {
  return parts_->group_ends.empty() ? 0 : parts_->group_ends.back();
}

std::string ParquetReader::row_json(int64_t row) {
  Parts& parts = *parts_;
  if (row < 0 || row >= num_rows()) {
    fail(ErrorCode::kInvalidArgument, "there is no row {} (from 0): it has {} rows", row,
         num_rows());
  }
  try {
    guarded([&] { parts.seek(row); });
    const Json record = {
        {parts.column, arrow_to_json(*parts.batch->column(0), row - parts.batch_begin)}};
    std::string text = record.dump();
    if (text.size() <= kMaxRecordBytes) return text;
    fail(ErrorCode::kInvalidArgument, "it has more than {} bytes", kMaxRecordBytes);
  } catch (const Error& error) {
    parts.batches.reset();
    fail(error.code(), "row {} (from 0): column '{}': {}", row, parts.column, error.what());
  } catch (const Json::type_error&) {  // dump() of bytes that are not UTF-8
    fail(ErrorCode::kInvalidArgument, "row {} (from 0): column '{}': it is not UTF-8", row,
         parts.column);
  }
}

}  // namespace nibble
