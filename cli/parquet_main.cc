// nibble-parquet: reads Parquet files for `nibble convert` over standard input and output. Started
// by `nibble`, not by people.
#include <cstdio>
#include <exception>
#include <iostream>

#include "core/parquet/parquet_server.h"

int main(int argc, char**) {
  if (argc != 1) {
    std::fputs("usage: nibble-parquet (started by `nibble convert`)\n", stderr);
    return 2;
  }
  try {
    std::ios::sync_with_stdio(false);
    nibble::serve_parquet(std::cin, std::cout);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nibble-parquet: %s\n", error.what());
    return 1;
  }
}
