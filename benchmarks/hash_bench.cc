// The content hash on one CPU thread, on every instruction set of this machine, beside what the
// same thread reads from memory.
//   hash_bench [megabytes of one array, default 256]
// Checks each against the formula first (quant::hash_element), then prints a JSON line for words
// and one for BF16 values: medians of interleaved repetitions, in which the scalar kernel and the
// plain read take part.
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/figure.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/kernels/isa.h"
#include "core/quant/rows.h"

namespace nibble {
namespace {

using kernels::Isa;
using kernels::IsaTable;

constexpr int kRepetitions = 9;

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (kernels::isa_is_available(isa)) isas.push_back(isa);
  }
  return isas;
}

// Prefetches, because some processors do not by themselves.
uint64_t sum_of(const std::vector<uint64_t>& memory) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= memory.size(); i += 8) {
    __builtin_prefetch(memory.data() + i + 512);
    for (size_t j = 0; j < 8; ++j) sums[j] += memory[i + j];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

template <typename Element>
void run(const char* kind, const std::vector<uint64_t>& memory,
         void (*IsaTable::*kernel)(const Element*, int64_t, int64_t, uint64_t, uint64_t*,
                                   uint64_t*),
         const quant::ContentHash& want) {
  const auto* values = reinterpret_cast<const Element*>(memory.data());
  const double bytes = static_cast<double>(memory.size()) * sizeof(uint64_t);
  const auto count = static_cast<int64_t>(memory.size() * sizeof(uint64_t) / sizeof(Element));
  std::map<Isa, std::vector<double>> hash_ms;
  std::vector<double> read_ms;
  volatile uint64_t sum = 0;
  for (int repetition = 0; repetition <= kRepetitions; ++repetition) {
    Stopwatch watch;
    for (const Isa isa : available_isas()) {
      quant::ContentHash got;
      watch.restart_ms();
      (kernels::isa_table(isa).*kernel)(values, 0, count, 0, &got.low, &got.high);
      const double ms = watch.elapsed_ms();
      NIBBLE_CHECK(got == want, "{} of {} {} has another hash", isa_name(isa), count, kind);
      if (repetition > 0) hash_ms[isa].push_back(ms);
    }
    watch.restart_ms();
    sum = sum + sum_of(memory);
    if (repetition > 0) read_ms.push_back(watch.elapsed_ms());
  }
  const auto rate = [&](const std::vector<double>& ms) { return bytes / median(ms) / 1e6; };
  Figure figure("hash");
  figure.set("elements", kind).set("bytes", static_cast<int64_t>(bytes));
  figure.number("read_gb_per_s", rate(read_ms));
  for (const auto& [isa, ms] : hash_ms) {
    const std::string name(isa_name(isa));
    figure.times(name, ms).number(name + "_gb_per_s", rate(ms));
    figure.number(name + "_of_read", rate(ms) / rate(read_ms));
    figure.number(name + "_times_scalar", rate(ms) / rate(hash_ms.at(Isa::kScalar)));
  }
  figure.print();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;
  const size_t megabytes = argc > 1 ? static_cast<size_t>(std::atoi(argv[1])) : 256;
  std::vector<uint64_t> memory(megabytes * 1'000'000 / sizeof(uint64_t));
  std::mt19937_64 engine(11);
  for (uint64_t& word : memory) word = engine();
  const auto* words = reinterpret_cast<const uint32_t*>(memory.data());
  const auto* bf16 = reinterpret_cast<const uint16_t*>(memory.data());
  const auto count = static_cast<int64_t>(memory.size());
  run<uint32_t>("words", memory, &IsaTable::hash_words, quant::hash_words(words, count * 2, 0));
  run<uint16_t>("bf16", memory, &IsaTable::hash_bf16, quant::hash_bf16(bf16, count * 4, 0));
  return 0;
}
