#!/usr/bin/env bash
# Makes a folder that scripts/gpu_report.sh and scripts/gpu_report_multi.sh run from on a machine with only torch and a
# driver: nibble, the GPU tests and benchmarks, the libraries they need besides torch's and CUDA's, and the data they
# read. No GPU is needed here.
#   scripts/gpu_bundle.sh [FOLDER]      (default: build/gpu-bundle)
set -euo pipefail

cd "$(dirname "$0")/.."
out=${1:-build/gpu-bundle}
deps=$(realpath -m "${NIBBLE_DEPS_DIR:-.deps}")
tests=(kernels_cuda_test models_cuda_test engine_cuda_test ranks_cuda_test nccl_group_test process_transaction_test mesh_test)
cmake --preset cuda "-DNIBBLE_DEPS_DIR=$deps"
cmake --build --preset cuda --target nibble gpu_model_bench gpu_delta_bench gpu_exact_bench gpu_pair_bench "${tests[@]}"

rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
cp build/cuda/bin/{nibble,nibble-reward,gpu_model_bench,gpu_delta_bench,gpu_exact_bench,gpu_pair_bench} "$out/bin/"
for name in "${tests[@]}"; do cp "build/cuda/tests/$name" "$out/bin/"; done
strip "$out"/bin/*
# nibble-parquet stays behind: with Arrow it is 50 MB, and calibration data can be JSON lines.
# Torch and CUDA are the other machine's; so are libc and the compiler's runtime.
for binary in "$out"/bin/*; do
  ldd "$binary" | awk '/=> \//{print $3}' |
    grep -vE '/(libtorch|libc10|libcu|libnv|libnccl|libgomp)|/lib(c|m|dl|rt|pthread|util|resolv|gcc_s|stdc\+\+)\.so' |
    xargs -r cp -nt "$out/lib"
  patchelf --set-rpath '$ORIGIN/../lib' "$binary"
done
for library in "$out"/lib/*; do patchelf --set-rpath '$ORIGIN' "$library"; done
mkdir -p "$out/tests" "$out/scripts" "$out/benchmarks"
cp -r configs tools "$out/"
cp -r benchmarks/peers "$out/benchmarks/"
cp -r tests/oracles "$out/tests/"
cp scripts/gpu_report.sh scripts/gpu_report_multi.sh scripts/summarize_runs.py "$out/scripts/"
du -sh "$out"
