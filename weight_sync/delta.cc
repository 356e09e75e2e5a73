#include "weight_sync/delta.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "core/base/fail.h"
#include "core/quant/hash.h"

namespace nibble {
namespace {

constexpr size_t kBlockBytes = 4096;  // compared at once: nearly all are equal
constexpr int kCodeBits = 4;
constexpr uint64_t kCodeMask = 15;
constexpr size_t kHashBytes = 16;
// Of a length: what the part is, if it is no list.
constexpr uint64_t kWholeFlag = uint64_t{1} << 63;       // the slice's own bytes
constexpr uint64_t kCompressedFlag = uint64_t{1} << 62;  // of the bytes' XOR, by Zstandard
constexpr uint64_t kFlags = kWholeFlag | kCompressedFlag;
constexpr int kCompressionLevel = 1;  // higher ones save some percent and take many times longer
constexpr size_t kSparseShare = 16;   // what a shorter list might still save is not worth a pass

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

void put_varint(std::vector<std::byte>& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out.push_back(static_cast<std::byte>(value | 128));
  out.push_back(static_cast<std::byte>(value));
}

[[noreturn]] void refuse(const char* what) {
  fail(ErrorCode::kDataLoss, "a delta is damaged: {}", what);
}

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  bool at_end() const { return at_ == bytes_.size(); }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 63; shift += 7) {
      if (at_end()) refuse("it ends within a number");
      const auto byte = static_cast<uint64_t>(bytes_[at_++]);
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
    refuse("a number is too long");
  }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

// Calls `visit(element, a, b)` for every element that differs; false ends it.
template <typename Element, typename Visit>
bool for_each_change(std::span<const std::byte> base, std::span<const std::byte> next,
                     Visit visit) {
  for (size_t begin = 0; begin < next.size(); begin += kBlockBytes) {
    const size_t bytes = std::min(kBlockBytes, next.size() - begin);
    if (std::memcmp(base.data() + begin, next.data() + begin, bytes) == 0) continue;
    for (size_t at = begin; at < begin + bytes; at += sizeof(Element)) {
      const auto a = load<Element>(base.data() + at), b = load<Element>(next.data() + at);
      if (a != b && !visit(at / sizeof(Element), static_cast<Element>(a ^ b))) return false;
    }
  }
  return true;
}

quant::ContentHash header_hash(std::span<const std::byte> lengths) {
  quant::ContentHash hash;
  for (size_t at = 0; at < lengths.size(); at += 4) {
    hash += quant::hash_element(load<uint32_t>(lengths.data() + at), at / 4);
  }
  return hash;
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
  return out;
}

void apply_xor(std::span<const std::byte> compressed, std::span<std::byte> target) {
  std::vector<std::byte> change(target.size());
  const size_t bytes =
      ZSTD_decompress(change.data(), change.size(), compressed.data(), compressed.size());
  if (ZSTD_isError(bytes) != 0 || bytes != target.size())
    refuse("compressed bytes are not a slice's");
  for (size_t i = 0; i < target.size(); ++i) target[i] ^= change[i];
}

uint64_t length_at(std::span<const std::byte> header, size_t slice) {
  return load<uint64_t>(header.data() + kHashBytes + slice * sizeof(uint64_t));
}

}  // namespace

std::optional<std::vector<std::byte>> encode_delta(StoredKind kind, std::span<const std::byte> base,
                                                   std::span<const std::byte> next) {
  NIBBLE_CHECK(base.size() == next.size(), "{} and {} bytes", base.size(), next.size());
  std::vector<std::byte> out;
  uint64_t expected = 0;  // the place after the change before
  bool is_shorter = false;
  if (kind == StoredKind::kWords) {
    is_shorter = for_each_change<uint32_t>(base, next, [&](size_t word, uint32_t change) {
      for (int code = 0; code < 8; ++code) {
        const uint64_t bits = change >> (kCodeBits * code) & kCodeMask;
        if (bits == 0) continue;
        const uint64_t place = 8 * word + static_cast<uint64_t>(code);
        put_varint(out, (place - expected) << kCodeBits | bits);
        expected = place + 1;
      }
      return out.size() < next.size();
    });
  } else {
    is_shorter = for_each_change<uint16_t>(base, next, [&](size_t place, uint16_t change) {
      put_varint(out, place - expected);
      put_varint(out, change);
      expected = place + 1;
      return out.size() < next.size();
    });
  }
  if (!is_shorter) return std::nullopt;
  return out;
}

void apply_delta(StoredKind kind, std::span<const std::byte> delta, std::span<std::byte> target) {
  Reader reader(delta);
  const bool is_words = kind == StoredKind::kWords;
  const uint64_t count = is_words ? 2 * target.size() : target.size() / 2;  // codes, or values
  uint64_t place = 0;
  while (!reader.at_end()) {
    const uint64_t first = reader.varint();
    const uint64_t distance = is_words ? first >> kCodeBits : first;
    const uint64_t change = is_words ? first & kCodeMask : reader.varint();
    if (distance >= count - place) refuse("a place lies outside its slice");
    if (change == 0 || change > 0xffff) refuse("a change is none");
    place += distance;
    if (is_words) {
      // Codes go up from the lowest bits, also within the bytes of a little-endian word.
      target[place / 2] ^= static_cast<std::byte>(change << (place % 2 * kCodeBits));
    } else {
      const auto value = static_cast<uint16_t>(load<uint16_t>(target.data() + 2 * place) ^ change);
      std::memcpy(target.data() + 2 * place, &value, sizeof value);
    }
    ++place;
  }
}

EncodedEdge encode_edge(const Manifest& manifest, const Edge& edge,
                        std::span<const std::span<const std::byte>> base,
                        std::span<const std::span<const std::byte>> next) {
  EncodedEdge out;
  std::vector<uint64_t> lengths;
  for (size_t i = 0; i < edge.slices.size(); ++i) {
    const StoredKind kind = manifest.at(edge.slices[i].slice.tensor).kind;
    const auto list = encode_delta(kind, base[i], next[i]);
    std::span<const std::byte> part = list ? std::span<const std::byte>(*list) : next[i];
    uint64_t flag = list ? 0 : kWholeFlag;
    std::vector<std::byte> compressed;
    if (part.size() > next[i].size() / kSparseShare) {
      compressed = compress_xor(base[i], next[i]);
      if (compressed.size() < part.size()) {
        part = compressed;
        flag = kCompressedFlag;
      }
    }
    lengths.push_back(part.size() | flag);
    out.payload.insert(out.payload.end(), part.begin(), part.end());
  }
  const auto as_bytes = std::as_bytes(std::span(lengths));
  const quant::ContentHash hash = header_hash(as_bytes);
  out.header.resize(kHashBytes);
  std::memcpy(out.header.data(), &hash.low, sizeof hash.low);
  std::memcpy(out.header.data() + sizeof hash.low, &hash.high, sizeof hash.high);
  out.header.insert(out.header.end(), as_bytes.begin(), as_bytes.end());
  return out;
}

int64_t delta_header_bytes(const Edge& edge) {
  return static_cast<int64_t>(kHashBytes + edge.slices.size() * sizeof(uint64_t));
}

int64_t delta_payload_bytes(const Edge& edge, std::span<const std::byte> header) {
  if (std::ssize(header) != delta_header_bytes(edge)) refuse("its header has another size");
  const quant::ContentHash hash = header_hash(header.subspan(kHashBytes));
  if (load<uint64_t>(header.data()) != hash.low || load<uint64_t>(header.data() + 8) != hash.high) {
    refuse("its header arrived with other contents than were sent");
  }
  int64_t bytes = 0;
  for (size_t i = 0; i < edge.slices.size(); ++i) {
    const uint64_t length = length_at(header, i);
    const auto slice_bytes = static_cast<uint64_t>(edge.slices[i].bytes());
    const bool is_whole = (length & kWholeFlag) != 0;
    const uint64_t part = length & ~kFlags;
    if ((length & kFlags) == kFlags) refuse("a length says two things");
    if (is_whole ? part != slice_bytes : part >= slice_bytes) refuse("a length is not a slice's");
    bytes += static_cast<int64_t>(part);
  }
  return bytes;
}

void decode_edge(const Manifest& manifest, const Edge& edge, std::span<const std::byte> header,
                 std::span<const std::byte> payload,
                 std::span<const std::span<const std::byte>> base,
                 std::span<const std::span<std::byte>> target) {
  if (delta_payload_bytes(edge, header) != std::ssize(payload)) refuse("bytes are missing");
  for (size_t i = 0; i < edge.slices.size(); ++i) {
    const uint64_t length = length_at(header, i);
    const auto part = payload.first(static_cast<size_t>(length & ~kFlags));
    payload = payload.subspan(part.size());
    if ((length & kWholeFlag) != 0) {
      std::memcpy(target[i].data(), part.data(), part.size());
      continue;
    }
    if (target[i].data() != base[i].data()) {
      std::memcpy(target[i].data(), base[i].data(), base[i].size());
    }
    if ((length & kCompressedFlag) != 0) {
      apply_xor(part, target[i]);
    } else {
      apply_delta(manifest.at(edge.slices[i].slice.tensor).kind, part, target[i]);
    }
  }
}

}  // namespace nibble
