#!/usr/bin/env bash
# A fan-out between real processes: each in a network namespace of its own, its link to a switch shaped by tbf to 20 MB/s in both
# directions. Chains of 1 to 8 receivers, and one sender to several for contrast, are timed and compared with the formulas of
# weight_sync/fanout.h; every receiver's bytes are compared by SHA-256. Prints one JSON line a case; exit code 1 if a time
# is more than 5 % from its formula or bytes differ, 2 if this machine cannot do it. Needs root, ip and tc; two minutes at most.
#   sudo benchmarks/fanout_netns.sh [BINARY]        BINARY: build/cpu/bin/chain_relay
set -euo pipefail

cd "$(dirname "$0")/.."
relay=${1:-build/cpu/bin/chain_relay}
payload_bytes=40000000
chunk_bytes=1000000
link_bytes_per_s=20000000
# What is left for a payload: 1448 of the 1514 bytes of a full Ethernet frame with TCP timestamps. tbf counts the frames.
goodput=$((link_bytes_per_s * 1448 / 1514))
receivers=8
port=7100
space="nbf$$"

cannot() { echo "fanout_netns: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || cannot "needs root, to make network namespaces and shape links"
for tool in ip tc python3; do command -v "$tool" >/dev/null || cannot "needs '$tool'"; done
[ -x "$relay" ] || cannot "there is no '$relay': cmake --build --preset cpu --target chain_relay"

scratch=$(mktemp -d)
children=()
cleanup() {
  for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
  for node in hub $(seq 0 "$receivers"); do ip netns del "$space-$node" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap cleanup EXIT

shape() {  # NAMESPACE DEVICE
  ip netns exec "$1" tc qdisc add dev "$2" root tbf rate "$((link_bytes_per_s * 8))bit" burst 128kb limit 4mb ||
    cannot "tc cannot add a tbf queue: the kernel needs CONFIG_NET_SCH_TBF"
}

ip netns add "$space-hub" || cannot "cannot make a network namespace: the kernel needs CONFIG_NET_NS"
ip -n "$space-hub" link add switch type bridge || cannot "cannot make a bridge: the kernel needs CONFIG_BRIDGE"
ip -n "$space-hub" link set switch up
for i in $(seq 0 "$receivers"); do
  ip netns add "$space-$i"
  ip -n "$space-$i" link add link0 type veth peer name "port$i" netns "$space-hub" || cannot "the kernel needs CONFIG_VETH"
  ip -n "$space-hub" link set "port$i" master switch up
  ip -n "$space-$i" addr add "10.77.0.$((i + 1))/24" dev link0
  ip -n "$space-$i" link set lo up
  ip -n "$space-$i" link set link0 up
  shape "$space-$i" link0            # out of the node
  shape "$space-hub" "port$i"        # into it
done

start() { # NODE ARGUMENTS...: one process, its line in $scratch/NODE
  local node=$1
  shift
  ip netns exec "$space-$node" "$relay" "$@" --bytes "$payload_bytes" --chunk "$chunk" --timeout-s 60 >"$scratch/$node" &
  children+=($!)
}
address() { echo "10.77.0.$(($1 + 1)):$port"; }

# run STRATEGY NUM_RECEIVERS CHUNK_BYTES
run() {
  local strategy=$1 count=$2 chunk=$3 i targets=()
  children=()
  rm -f "$scratch"/*
  for i in $(seq 1 "$count"); do
    if [ "$strategy" = chain ] && [ "$i" -lt "$count" ]; then
      start "$i" receive --listen "$(address "$i")" --to "$(address $((i + 1)))"
    else
      start "$i" receive --listen "$(address "$i")"
    fi
    if [ "$strategy" = direct ] || [ "$i" = 1 ]; then targets+=(--to "$(address "$i")"); fi
  done
  start 0 send "${targets[@]}"
  for pid in "${children[@]}"; do wait "$pid" || { echo "fanout_netns: a process of $strategy with $count failed" >&2; exit 1; }; done
  children=()
  python3 - "$strategy" "$count" "$chunk" "$goodput" "$link_bytes_per_s" "$scratch" <<'PYTHON'
import json
import pathlib
import sys

strategy, folder = sys.argv[1], pathlib.Path(sys.argv[6])
count, chunk, goodput, link = map(int, sys.argv[2:6])
lines = [json.loads((folder / str(node)).read_text()) for node in range(count + 1)]
size, hashes = lines[0]["bytes"], {line["sha256"] for line in lines}
measured = (max(line["end_ns"] for line in lines[1:]) - lines[0]["start_ns"]) / 1e9
formula = size / goodput + (count - 1) * chunk / goodput if strategy == "chain" else count * size / goodput
agrees = abs(measured / formula - 1) <= 0.05 and len(hashes) == 1
print(json.dumps({"bench": "fanout_netns", "strategy": strategy, "receivers": count, "bytes": size, "chunk_bytes": chunk,
                  "link_bytes_per_s": link, "payload_bytes_per_s": goodput, "measured_s": round(measured, 4),
                  "formula_s": round(formula, 4), "ratio": round(measured / formula, 4),
                  "same_bytes_everywhere": len(hashes) == 1}), flush=True)
sys.exit(0 if agrees else 1)
PYTHON
}

differing=0
for count in $(seq 1 "$receivers"); do run chain "$count" "$chunk_bytes" || differing=$((differing + 1)); done
run chain "$receivers" $((4 * chunk_bytes)) || differing=$((differing + 1))
for count in 2 4 8; do run direct "$count" "$chunk_bytes" || differing=$((differing + 1)); done
echo "fanout_netns: $differing cases differ" >&2
[ "$differing" = 0 ]
