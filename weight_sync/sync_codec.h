#pragma once

#include "core/comm/process_group.h"
#include "weight_sync/transaction.h"

namespace nibble {

namespace v1 {
class Rendezvous;
class SenderReport;
class Transaction;
}  // namespace v1

/// Publication messages as they travel. Decoding throws Error{kInvalidArgument} naming the field.
void encode_transaction(const Transaction& transaction, v1::Transaction& message);
Transaction decode_transaction(const v1::Transaction& message);
void encode_report(const SenderReport& report, v1::SenderReport& message);
SenderReport decode_report(const v1::SenderReport& message);
/// Where peers meet.
Rendezvous decode_rendezvous(const v1::Rendezvous& message);

}  // namespace nibble
