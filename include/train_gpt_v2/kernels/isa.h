#pragma once
// Instruction sets the CPU kernels are compiled for. Each has one translation unit; the best one this processor can run
// is chosen at start. Results of one instruction set do not depend on the number of threads; different sets round
// differently in the last digits.

namespace train_gpt_v2 {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The best set of this processor and operating system.
Isa best_isa();
bool isa_available(Isa isa);
const char* isa_name(Isa isa);

}  // namespace train_gpt_v2
