#include "core/data/record_set.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "core/base/fail.h"
#include "core/data/jsonl_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxRecords = int64_t{1} << 40;

bool is_data_file(const fs::path& path) {
  return path.extension() == ".jsonl" || path.extension() == ".parquet";
}

std::vector<fs::path> find_files(const fs::path& path) {
  if (!fs::exists(path)) {
    fail(ErrorCode::kNotFound, "there is no file or directory '{}'", path.string());
  }
  if (!fs::is_directory(path)) {
    if (!is_data_file(path)) {
      fail(ErrorCode::kInvalidArgument,
           "'{}' is neither *.jsonl nor *.parquet, which is how the two formats are told apart",
           path.string());
    }
    if (!fs::is_regular_file(
            path)) {  // records are read more than once; a pipe would be waited for
      fail(ErrorCode::kInvalidArgument, "'{}' is no regular file", path.string());
    }
    return {path};
  }
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    if (is_data_file(entry.path()) && entry.is_regular_file()) files.push_back(entry.path());
  }
  if (files.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "directory '{}' has no *.jsonl and no *.parquet; folders in it are not looked at",
         path.string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// The first texts of a list that is read out of order, as many as a number of bytes holds.
class FirstTexts {
 public:
  FirstTexts(size_t num_wanted, int64_t max_bytes) : end_(num_wanted), max_bytes_(max_bytes) {}

  void add(size_t place, RecordText text) {
    if (place >= end_) return;
    num_bytes_ += std::ssize(text.json);
    held_.emplace(place, std::move(text));
    while (num_bytes_ > max_bytes_ && held_.size() > 1) {
      const auto last = std::prev(held_.end());
      num_bytes_ -= std::ssize(last->second.json);
      end_ = last->first;  // a text that was let go leaves no hole before others
      held_.erase(last);
    }
  }

  std::vector<RecordText> take() {
    std::vector<RecordText> texts;
    texts.reserve(held_.size());
    for (auto& [place, text] : held_) texts.push_back(std::move(text));
    return texts;
  }

 private:
  size_t end_;
  const int64_t max_bytes_;
  int64_t num_bytes_ = 0;
  std::map<size_t, RecordText> held_;  // by place, all below end_
};

}  // namespace

RecordSet::RecordSet(const fs::path& path, std::vector<std::string> columns,
                     const fs::path& parquet_program)
    : parquet_(parquet_program, std::move(columns)) {
  int64_t total = 0;
  for (const fs::path& file : find_files(path)) {
    if (file.extension() == ".parquet") {
      files_.push_back(std::make_unique<ParquetFile>(file, parquet_));
    } else {
      files_.push_back(std::make_unique<JsonlFile>(file));
    }
    total += files_.back()->num_records();
    if (total > kMaxRecords) {
      fail(ErrorCode::kInvalidArgument, "up to '{}' there are {} records; at most {} are read",
           file.string(), total, kMaxRecords);
    }
    ends_.push_back(total);
  }
  if (total == 0) fail(ErrorCode::kInvalidArgument, "'{}' has no records", path.string());
}

std::vector<RecordText> RecordSet::read(std::span<const int64_t> indices, int64_t max_bytes) {
  std::vector<size_t> places(indices.size());
  std::iota(places.begin(), places.end(), size_t{0});
  std::sort(places.begin(), places.end(),
            [&](size_t a, size_t b) { return indices[a] < indices[b]; });
  FirstTexts texts(indices.size(), max_bytes);
  auto next = places.begin();
  for (size_t f = 0; f < files_.size(); ++f) {
    const int64_t begin = f == 0 ? 0 : ends_[f - 1];
    const auto first = next;
    std::vector<int64_t> in_file;
    for (; next != places.end() && indices[*next] < ends_[f]; ++next) {
      in_file.push_back(indices[*next] - begin);
    }
    if (in_file.empty()) continue;
    files_[f]->read(in_file, [&](size_t i, RecordText text) {
      texts.add(first[static_cast<std::ptrdiff_t>(i)], std::move(text));
    });
  }
  return texts.take();
}

}  // namespace nibble
