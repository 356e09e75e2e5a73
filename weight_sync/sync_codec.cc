#include "weight_sync/sync_codec.h"

#include "proto/nibble.pb.h"

namespace nibble {

void encode_transaction(const Transaction& transaction, v1::Transaction& message) {
  message.set_job(transaction.job);
  message.set_epoch(transaction.epoch);
  message.set_version(transaction.version);
  message.set_plan_digest(digest_bytes(transaction.plan_digest));
  message.set_base_version(transaction.base_version);
  message.set_omits_frozen(transaction.omits_frozen);
}

Transaction decode_transaction(const v1::Transaction& message) {
  return {message.job(),          message.epoch(),
          message.version(),      digest_from_bytes(message.plan_digest()),
          message.base_version(), message.omits_frozen()};
}

void encode_report(const SenderReport& report, v1::SenderReport& message) {
  message.set_sender(report.sender);
  message.set_bytes(report.bytes);
  encode_transaction(report.transaction, *message.mutable_transaction());
  for (const SliceHash& slice : report.slices) {
    v1::SliceHash& out = *message.add_slices();
    out.set_tensor(static_cast<int32_t>(slice.slice.tensor));
    out.set_row_begin(slice.slice.row_begin);
    out.set_row_end(slice.slice.row_end);
    out.set_hash_low(slice.hash.low);
    out.set_hash_high(slice.hash.high);
  }
}

SenderReport decode_report(const v1::SenderReport& message) {
  SenderReport report{
      message.sender(), decode_transaction(message.transaction()), {}, message.bytes()};
  for (const v1::SliceHash& in : message.slices()) {
    report.slices.push_back(
        {{in.tensor(), in.row_begin(), in.row_end()}, {in.hash_low(), in.hash_high()}});
  }
  return report;
}

Rendezvous decode_rendezvous(const v1::Rendezvous& message) {
  return {message.host(), message.port(), message.group_name(),
          std::chrono::milliseconds(message.timeout_ms())};
}

}  // namespace nibble
