#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "core/base/fail.h"
#include "weight_sync/transport.h"

namespace nibble {

/// What the senders of one move have put on the way, for a simulation of one thread: send() leaves
/// the bytes here, receive() takes them if all are there.
struct SimWay {
  std::map<int, std::vector<std::vector<std::byte>>> sent;  ///< by sender, a call of send() each
  std::set<int> done;                                       ///< senders whose move is over
};

/// Something that happens to the bytes of one sender on their way.
enum class SimDamage { kNone, kFlippedBit, kTruncated, kSwapped };

class SimTransport final : public Transport {
 public:
  /// `place` chooses the bit, or the byte from which the rest is lost.
  SimTransport(SimWay& way, int sender, SimDamage damage = SimDamage::kNone, uint64_t place = 0)
      : way_(way), sender_(sender), damage_(damage), place_(place) {}

  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& /*sizes*/,
            const SentHandler& on_sent, Deadline /*deadline*/) override {
    std::vector<std::byte> bytes;
    for (size_t i = 0; i < pieces.size(); ++i) {
      bytes.insert(bytes.end(), pieces[i].begin(), pieces[i].end());
      on_sent({static_cast<int64_t>(i), 0, std::ssize(pieces[i])});
    }
    const size_t at = place_ / 8 % bytes.size();
    if (damage_ == SimDamage::kFlippedBit) bytes[at] ^= std::byte{1} << (place_ % 8);
    if (damage_ == SimDamage::kTruncated) bytes.resize(at);
    if (damage_ == SimDamage::kSwapped) std::rotate(bytes.begin(), bytes.begin() + 4, bytes.end());
    way_.sent[sender_].push_back(std::move(bytes));
  }

  void receive(std::span<const IncomingEdge> edges, const TransferSizes& /*sizes*/,
               const ArrivalHandler& on_arrival, Deadline /*deadline*/) override {
    for (size_t e = 0; e < edges.size(); ++e) {
      auto& messages = way_.sent[edges[e].sender];
      if (messages.empty()) {
        fail(ErrorCode::kDeadlineExceeded, "sender {} is silent", edges[e].sender);
      }
      const std::vector<std::byte> bytes = std::move(messages.front());
      messages.erase(messages.begin());
      size_t at = 0;
      for (size_t i = 0; i < edges[e].pieces.size(); ++i) {
        const auto piece = edges[e].pieces[i];
        if (at + piece.size() > bytes.size()) {
          fail(ErrorCode::kUnavailable, "sender {} is gone", edges[e].sender);
        }
        std::memcpy(piece.data(), bytes.data() + at, piece.size());
        at += piece.size();
        on_arrival(e, {static_cast<int64_t>(i), 0, std::ssize(piece)});
      }
    }
  }
  void abort() noexcept override {}

 private:
  SimWay& way_;
  const int sender_;
  const SimDamage damage_;
  const uint64_t place_;
};

}  // namespace nibble
