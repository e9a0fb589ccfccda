// Kernels for any processor.
#define TGV2_ISA isa_portable
#include "isa/kernels.h"
