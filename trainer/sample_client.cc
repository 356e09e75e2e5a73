#include "trainer/sample_client.h"

#include <grpcpp/grpcpp.h>

#include <thread>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/data/sample_codec.h"
#include "core/rpc/channel.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {

namespace {

std::vector<SampleGroup> try_to_fetch(v1::Rollout::Stub& stub, const std::string& engine_address,
                                      const std::vector<uint64_t>& prompt_ids,
                                      std::chrono::milliseconds timeout) {
  v1::FetchSamplesRequest request;
  request.mutable_prompt_ids()->Add(prompt_ids.begin(), prompt_ids.end());
  std::vector<SampleGroup> groups;
  call_rpc("FetchSamples", engine_address, timeout, [&](grpc::ClientContext& context) {
    const auto reader = stub.FetchSamples(&context, request);
    v1::SampleGroupMessage message;
    try {
      while (reader->Read(&message)) {
        decode_group_part(message, groups);
        if (groups.size() > prompt_ids.size()) {
          fail(ErrorCode::kInvalidArgument, "more groups came than the {} that were asked for",
               prompt_ids.size());
        }
      }
    } catch (...) {
      context.TryCancel();
      (void)reader->Finish();
      throw;
    }
    return reader->Finish();
  });
  return groups;
}

}  // namespace

std::vector<SampleGroup> fetch_samples(const std::string& engine_address,
                                       const std::vector<uint64_t>& prompt_ids,
                                       std::chrono::milliseconds timeout) {
  constexpr auto kPause = std::chrono::milliseconds(100);
  const auto stub = v1::Rollout::NewStub(make_channel(engine_address));
  const Deadline deadline = Deadline::after(timeout);
  while (true) {
    try {
      return try_to_fetch(*stub, engine_address, prompt_ids, deadline.remaining());
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnavailable || deadline.remaining() <= kPause) throw;
      std::this_thread::sleep_for(kPause);
    }
  }
}

}  // namespace nibble
