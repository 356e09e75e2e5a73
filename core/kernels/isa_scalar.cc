#include "core/kernels/activation_cpu.h"
#include "core/kernels/adamw_cpu.h"
#include "core/kernels/attention_cpu.h"
#include "core/kernels/gptq_cpu.h"
#include "core/kernels/held_pack_cpu.h"
#include "core/kernels/isa.h"
#include "core/kernels/isa_table_macro.h"
#include "core/kernels/linear_cpu.h"
#include "core/kernels/linear_many_cpu.h"
#include "core/kernels/log_softmax_cpu.h"
#include "core/kernels/norm_cpu.h"
#include "core/kernels/quantize_cpu.h"
#include "core/kernels/rope_cpu.h"
#include "core/kernels/router_cpu.h"

// Compiled with the flags of this instruction set (CMakeLists.txt); the body is in the headers.
namespace nibble::kernels {

extern const IsaTable kIsaTable_scalar;
const IsaTable kIsaTable_scalar = NIBBLE_ISA_TABLE;

}  // namespace nibble::kernels
