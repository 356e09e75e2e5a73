#include "trainer/sample_client.h"

#include <grpcpp/client_context.h>

#include "core/data/sample_codec.h"
#include "core/rpc/channel.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {

std::vector<SampleGroup> fetch_samples(const std::string& engine_address, int64_t step,
                                       const std::vector<uint64_t>& prompt_ids,
                                       std::chrono::milliseconds timeout) {
  const auto stub = v1::Rollout::NewStub(make_channel(engine_address));
  v1::FetchSamplesRequest request;
  request.set_step(step);
  request.mutable_prompt_ids()->Add(prompt_ids.begin(), prompt_ids.end());
  v1::FetchSamplesResponse response;
  call_rpc("FetchSamples", engine_address, timeout, [&](grpc::ClientContext& context) {
    return stub->FetchSamples(&context, request, &response);
  });
  std::vector<SampleGroup> groups;
  for (const v1::SampleGroupMessage& message : response.groups()) {
    groups.push_back(decode_group(message));
  }
  return groups;
}

}  // namespace nibble
