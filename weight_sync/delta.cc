#include "weight_sync/delta.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/base/fail.h"
#include "core/quant/hash.h"

namespace nibble {
namespace {

using kernels::kChangeBlockBytes;
using kernels::kChangeEntryBytes;
using kernels::num_change_blocks;

constexpr int64_t kHashBytes = 16;
// The header: its hash; for each piece the bytes of a frame, or which other form it has; for each
// block of each piece the entries of its list.
constexpr uint64_t kWholeMark = ~uint64_t{0};
constexpr uint64_t kListMark = ~uint64_t{1};
constexpr int kCompressionLevel = 1;  // higher ones save some percent and take many times longer
constexpr int64_t kSparseShare = 16;  // what a shorter list might still save is not worth a pass

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

[[noreturn]] void refuse(const char* what) {
  fail(ErrorCode::kDataLoss, "a delta is damaged: {}", what);
}

quant::ContentHash header_hash(std::span<const std::byte> contents) {
  quant::ContentHash hash;
  for (size_t at = 0; at < contents.size(); at += sizeof(uint32_t)) {
    hash += quant::hash_element(load<uint32_t>(contents.data() + at), at / sizeof(uint32_t));
  }
  return hash;
}

int64_t list_bytes(std::span<const uint32_t> counts) {
  return kChangeEntryBytes * std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

int64_t total_blocks(std::span<const int64_t> piece_bytes) {
  int64_t blocks = 0;
  for (const int64_t bytes : piece_bytes) blocks += num_change_blocks(bytes);
  return blocks;
}

std::vector<std::byte> compress_xor(std::span<const std::byte> base,
                                    std::span<const std::byte> next) {
  std::vector<std::byte> change(next.size());
  for (size_t i = 0; i < next.size(); ++i) change[i] = base[i] ^ next[i];
  std::vector<std::byte> out(ZSTD_compressBound(change.size()));
  const size_t bytes =
      ZSTD_compress(out.data(), out.size(), change.data(), change.size(), kCompressionLevel);
  if (ZSTD_isError(bytes) != 0) fail(ErrorCode::kInternal, "zstd: {}", ZSTD_getErrorName(bytes));
  out.resize(bytes);
  out.shrink_to_fit();  // a range has many
  return out;
}

void apply_frame(std::span<const std::byte> frame, std::span<std::byte> target) {
  std::vector<std::byte> change(target.size());
  const size_t bytes = ZSTD_decompress(change.data(), change.size(), frame.data(), frame.size());
  if (ZSTD_isError(bytes) != 0 || bytes != target.size()) refuse("a frame is not a piece's");
  for (size_t i = 0; i < target.size(); ++i) target[i] ^= change[i];
}

template <typename T>
void append(std::vector<std::byte>& out, const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

std::vector<std::byte> make_header(const std::vector<uint64_t>& forms,
                                   const std::vector<uint32_t>& counts) {
  std::vector<std::byte> header(kHashBytes);
  append(header, forms);
  append(header, counts);
  const quant::ContentHash hash = header_hash(std::span(header).subspan(kHashBytes));
  std::memcpy(header.data(), &hash.low, sizeof hash.low);
  std::memcpy(header.data() + sizeof hash.low, &hash.high, sizeof hash.high);
  return header;
}

}  // namespace

std::vector<PieceRange> delta_ranges(std::span<const int64_t> piece_bytes,
                                     const TransferSizes& sizes) {
  const int64_t range_bytes = 2 * sizes.bucket_bytes;
  std::vector<PieceRange> ranges;
  int64_t bytes = 0;
  for (size_t i = 0; i < piece_bytes.size(); ++i) {
    if (ranges.empty() || bytes + piece_bytes[i] > range_bytes) {
      ranges.push_back({i, i});
      bytes = 0;
    }
    bytes += piece_bytes[i];
    ranges.back().end = i + 1;
  }
  return ranges;
}

EncodedDelta encode_delta(const kernels::WeightKernels& kernels, ConstPieces base,
                          ConstPieces next) {
  NIBBLE_CHECK(base.size() == next.size(), "{} and {} pieces", base.size(), next.size());
  std::vector<kernels::ByteChangeJob> jobs;
  for (size_t i = 0; i < next.size(); ++i) {
    NIBBLE_CHECK(base[i].size() == next[i].size(), "{} and {} bytes", base[i].size(),
                 next[i].size());
    jobs.push_back({base[i].data(), next[i].data(), std::ssize(next[i])});
  }
  std::vector<uint32_t> counts = kernels.count_byte_changes(jobs);

  EncodedDelta out;
  std::vector<uint64_t> forms;
  std::span<uint32_t> left = counts;
  for (size_t i = 0; i < next.size(); ++i) {
    const auto own = left.first(static_cast<size_t>(num_change_blocks(jobs[i].bytes)));
    left = left.subspan(own.size());
    const int64_t listed = list_bytes(own), whole = jobs[i].bytes;
    forms.push_back(listed < whole ? kListMark : kWholeMark);
    out.frames.emplace_back();
    if (kernels.device() == DeviceKind::kCpu && listed > whole / kSparseShare) {
      std::vector<std::byte> frame = compress_xor(base[i], next[i]);
      if (std::ssize(frame) < std::min(listed, whole)) {
        forms.back() = frame.size();
        out.frames.back() = std::move(frame);
      }
    }
    if (forms.back() != kListMark) std::fill(own.begin(), own.end(), 0);
  }
  out.header = make_header(forms, counts);
  out.lists =
      Array<std::byte>::uninitialized(static_cast<size_t>(list_bytes(counts)), kernels.device());
  // The kernels' stream does not wait for what others still do with memory that has just been
  // theirs.
  device_memory(kernels.device()).finish();
  kernels.list_byte_changes(jobs, counts, out.lists.data());

  for (size_t i = 0; i < next.size(); ++i) {
    if (forms[i] == kListMark) continue;
    out.payload.push_back(forms[i] == kWholeMark ? next[i] : std::span(out.frames[i]));
  }
  // Last: of odd size, it would leave what follows it in a packed bucket unaligned.
  if (!out.lists.empty()) out.payload.emplace_back(out.lists.data(), out.lists.size());
  return out;
}

int64_t delta_header_bytes(std::span<const int64_t> piece_bytes) {
  return kHashBytes + std::ssize(piece_bytes) * static_cast<int64_t>(sizeof(uint64_t)) +
         total_blocks(piece_bytes) * static_cast<int64_t>(sizeof(uint32_t));
}

DeltaDecoder::DeltaDecoder(const kernels::WeightKernels& kernels, std::span<const std::byte> header,
                           Pieces target)
    : kernels_(kernels), target_(target.begin(), target.end()) {
  const std::vector<int64_t> sizes = piece_sizes(target);
  if (std::ssize(header) != delta_header_bytes(sizes)) refuse("its header has another size");
  const auto contents = header.subspan(kHashBytes);
  const quant::ContentHash hash = header_hash(contents);
  if (load<uint64_t>(header.data()) != hash.low || load<uint64_t>(header.data() + 8) != hash.high) {
    refuse("its header arrived with other contents than were sent");
  }
  const std::byte* forms = contents.data();
  const std::byte* counts = forms + sizes.size() * sizeof(uint64_t);
  for (int64_t block = 0; block < total_blocks(sizes); ++block) {
    counts_.push_back(load<uint32_t>(counts + block * static_cast<int64_t>(sizeof(uint32_t))));
    if (counts_.back() > kChangeBlockBytes) refuse("a block has more changes than bytes");
  }
  std::span<uint32_t> left = counts_;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const auto own = left.first(static_cast<size_t>(num_change_blocks(sizes[i])));
    left = left.subspan(own.size());
    const auto form = load<uint64_t>(forms + i * sizeof(uint64_t));
    forms_.push_back(form == kListMark    ? Form::kList
                     : form == kWholeMark ? Form::kWhole
                                          : Form::kFrame);
    frames_.emplace_back();
    if (list_bytes(own) > (forms_[i] == Form::kList ? sizes[i] : 0)) refuse("a list is too long");
    if (forms_[i] == Form::kFrame) {
      if (kernels.device() != DeviceKind::kCpu) refuse("a frame is not for a GPU");
      if (form == 0 || form >= static_cast<uint64_t>(sizes[i])) refuse("a frame of no such length");
      frames_[i].resize(form);
    }
  }
  lists_ =
      Array<std::byte>::uninitialized(static_cast<size_t>(list_bytes(counts_)), kernels.device());
}

std::vector<std::span<std::byte>> DeltaDecoder::payload() {
  std::vector<std::span<std::byte>> pieces;
  for (size_t i = 0; i < target_.size(); ++i) {
    if (forms_[i] == Form::kList) continue;
    pieces.push_back(forms_[i] == Form::kWhole ? target_[i] : std::span(frames_[i]));
  }
  if (!lists_.empty()) pieces.emplace_back(lists_.data(), lists_.size());
  return pieces;
}

void DeltaDecoder::apply(ConstPieces base) {
  std::vector<MemoryCopy> copies;
  std::vector<kernels::ByteTarget> targets;
  for (size_t i = 0; i < target_.size(); ++i) {
    targets.push_back({target_[i].data(), std::ssize(target_[i])});
    if (forms_[i] == Form::kWhole || target_[i].data() == base[i].data()) continue;
    copies.push_back({target_[i].data(), base[i].data(), std::ssize(target_[i])});
  }
  DeviceMemory& memory = device_memory(kernels_.device());
  memory.copy_all(copies);
  memory.finish();
  for (size_t i = 0; i < target_.size(); ++i) {
    if (forms_[i] == Form::kFrame) apply_frame(frames_[i], target_[i]);
  }
  if (!kernels_.apply_byte_changes(targets, counts_, lists_.data())) {
    refuse("a change lies outside its block");
  }
}

}  // namespace nibble
