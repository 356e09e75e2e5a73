"""Each rule of scripts/check_includes.py fires on a bad tree, at the right line, and not on a good one."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_includes.py"


def check(files):
    """Runs the script on a tree of {path: text}; returns (exit code, lines of output)."""
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            file = Path(root) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        result = subprocess.run([sys.executable, SCRIPT, root], capture_output=True, text=True,
                                timeout=60, check=False)
        return result.returncode, result.stdout.splitlines() + result.stderr.splitlines()


class CheckIncludes(unittest.TestCase):
    def expect(self, files, place, words):
        """Exactly one violation, at `place`, whose message holds `words`."""
        code, lines = check(files)
        self.assertEqual(code, 1, lines)
        self.assertEqual(len(lines), 2, lines)
        self.assertTrue(lines[0].startswith(place + ": "), lines)
        self.assertIn(words, lines[0])
        self.assertTrue(lines[1].endswith("1 violations"), lines)

    def test_a_good_tree_passes(self):
        code, lines = check({
            "core/base/fail.h": "#include <fmt/format.h>\n",
            "core/base/host_device.h": "",
            "core/base/env.cc": "auto x = std::getenv(\"A\");\n",
            "core/quant/int4.h": '#include "core/base/host_device.h"\n',
            "core/kernels/pack.h": '#include "core/quant/int4.h"\n',
            "core/kernels/pack_cpu.cc": '#include "core/kernels/pack.h"\n#include "core/base/fail.h"\n',
            "core/kernels_cuda/pack.cu": '#include "core/kernels/pack.h"\n',
            "core/ops/pack.h": '#include <ATen/ATen.h>\n#include "core/kernels/pack.h"\n',
            "core/models/llama.h": '#include "core/ops/pack.h"\n',
            "weight_sync/plan.h": '#include "core/models/llama.h"\n',
            "weight_sync/sync_service.cc": '#include "proto/sync.pb.h"\nnibble::v1::A a;\n',
            "trainer/loop.h": '#include "weight_sync/plan.h"\n// #include "rollout/engine.h"\n',
            "rollout/engine.h": '/*\n#include "trainer/loop.h"\ngetenv("X") */\n'
                                'const char* s = "getenv(nibble::v1)";\n',
            "cli/main.cc": '#include "trainer/loop.h"\n#include "rollout/engine.h"\n',
            "tests/core/env_test.cc": '#include "cli/none.h"\n'.replace("cli/none.h", "core/base/fail.h")
                                      + 'getenv("HOME");\n',
        })
        self.assertEqual(code, 0, lines)
        self.assertEqual(lines, ["check_includes: 15 files, 15 includes, 0 violations"])

    def test_core_names_no_component(self):
        self.expect({"core/data/a.h": '\n#include "trainer/b.h"\n', "trainer/b.h": ""},
                    "core/data/a.h:2", "core includes trainer/")

    def test_weight_sync_stands_below_the_components(self):
        self.expect({"weight_sync/a.h": '#include "rollout/b.h"\n', "rollout/b.h": ""},
                    "weight_sync/a.h:1", "weight_sync includes rollout/")

    def test_trainer_and_rollout_never_include_each_other(self):
        self.expect({"trainer/algo/a.h": '#include "rollout/engine/b.h"\n', "rollout/engine/b.h": ""},
                    "trainer/algo/a.h:1", "trainer includes rollout/")
        self.expect({"rollout/a.cc": '#include "trainer/b.h"\n', "trainer/b.h": ""},
                    "rollout/a.cc:1", "rollout includes trainer/")

    def test_only_cli_includes_cli(self):
        self.expect({"convert/a.cc": '#include "cli/b.h"\n', "cli/b.h": ""},
                    "convert/a.cc:1", "convert includes cli/")

    def test_product_code_does_not_include_tests(self):
        self.expect({"core/data/a.cc": '#include "tests/b.h"\n', "tests/b.h": ""},
                    "core/data/a.cc:1", "product code includes tests/")

    def test_base_includes_nothing_of_ours(self):
        self.expect({"core/base/a.h": '#include "core/config/b.h"\n', "core/config/b.h": ""},
                    "core/base/a.h:1", "core/base includes core/config")

    def test_the_ladder_inside_core_goes_down_only(self):
        for low, high in (("quant", "kernels"), ("kernels", "ops"), ("ops", "models"),
                          ("quant", "models")):
            code, lines = check({f"core/{low}/a.cc": f'#include "core/{high}/b.h"\n',
                                 f"core/{high}/b.h": ""})
            self.assertEqual(code, 1)
            self.assertTrue(lines[0].startswith(f"core/{low}/a.cc:1: core/{low} includes core/{high}"),
                            lines)

    def test_quant_and_kernels_stay_small(self):
        self.expect({"core/quant/a.h": '#include "core/tensor/b.h"\n', "core/tensor/b.h": ""},
                    "core/quant/a.h:1", "core/base only")
        self.expect({"core/kernels/a.cc": '#include "core/tensor/b.h"\n', "core/tensor/b.h": ""},
                    "core/kernels/a.cc:1", "quant and base only")
        self.expect({"core/kernels_cuda/a.cc": '#include "core/tensor/b.h"\n', "core/tensor/b.h": ""},
                    "core/kernels_cuda/a.cc:1", "kernels, quant, cuda and base")
        self.expect({"core/quant/a.h": "#include <cuda_runtime.h>\n"},
                    "core/quant/a.h:1", "builds without CUDA")

    def test_headers_of_quant_and_kernels_reach_no_heavy_library(self):
        self.expect({"core/kernels/a.h": "#include <torch/torch.h>\n"},
                    "core/kernels/a.h:1", "reaches torch/torch.h")
        self.expect({"core/quant/a.h": '\n#include "core/base/fail.h"\n',
                     "core/base/fail.h": "#include <fmt/format.h>\n"},
                    "core/quant/a.h:2", "reaches core/base/fail.h -> fmt/format.h")

    def test_what_a_cu_file_includes_reaches_no_heavy_library(self):
        self.expect({"core/kernels_cuda/a.cu": '#include "core/cuda/b.h"\n',
                     "core/cuda/b.h": '#include "core/base/log.h"\n',
                     "core/base/log.h": "#include <spdlog/spdlog.h>\n"},
                    "core/kernels_cuda/a.cu:1", "core/cuda/b.h -> core/base/log.h -> spdlog/spdlog.h")

    def test_proto_types_stop_at_the_edge(self):
        self.expect({"weight_sync/plan.cc": '#include "proto/sync.grpc.pb.h"\n'},
                    "weight_sync/plan.cc:1", "outside *_service")
        self.expect({"trainer/loop.cc": "\n\nnibble::v1::Step step;\n"},
                    "trainer/loop.cc:3", "proto types outside")

    def test_the_environment_is_read_in_one_file(self):
        self.expect({"core/config/a.cc": 'auto x = std::getenv("A");\n'},
                    "core/config/a.cc:1", "getenv outside")

    def test_includes_are_written_from_the_root(self):
        self.expect({"core/base/a.cc": '#include "b.h"\n', "core/base/b.h": ""},
                    "core/base/a.cc:1", "write paths from the root")

    def test_file_cycles_are_refused(self):
        self.expect({"core/data/a.h": '#include "core/data/b.h"\n',
                     "core/data/b.h": '#include "core/data/c.h"\n',
                     "core/data/c.h": '#include "core/data/a.h"\n'},
                    "core/data/a.h:1", "file cycle: core/data/a.h, core/data/b.h, core/data/c.h")

    def test_folder_cycles_are_refused_with_both_arrows(self):
        code, lines = check({"core/data/a.h": '#include "core/comm/b.h"\n', "core/comm/b.h": "",
                             "core/comm/c.h": '\n#include "core/data/d.h"\n', "core/data/d.h": ""})
        self.assertEqual(code, 1)
        self.assertEqual(lines[:2], [
            "core/comm/c.h:2: folder cycle of core/comm, core/data: includes core/data",
            "core/data/a.h:1: folder cycle of core/comm, core/data: includes core/comm"])


if __name__ == "__main__":
    unittest.main()
