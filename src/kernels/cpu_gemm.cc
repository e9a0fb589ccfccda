// How the GEMM is split: B is packed once, in parallel; then each task takes a block of rows and of columns of C and
// packs its own rows of A. The k blocks inside a task depend on k alone, so sums do not depend on the split.

#include <algorithm>
#include <stdexcept>

#include "cpu_kernels.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kRowsPerTask = 96;  // with 512 units: 196 KB of packed A, a fifth of an L2
constexpr int kTasksPerThread = 3;

}  // namespace

void CpuKernels::gemm(const Gemm& g) {
  if (g.a.type != g.b.type || (g.accumulate && g.c.type != Num::kFloat)) {
    throw std::invalid_argument("gemm: this mix of types is not provided");
  }
  if (g.m == 0 || g.n == 0) return;
  const std::int64_t row_panels = (g.m + table_.tile_rows - 1) / table_.tile_rows;
  const std::int64_t column_panels = (g.n + table_.tile_columns - 1) / table_.tile_columns;
  const std::int64_t units = table_.gemm_units(g), block = table_.gemm_block_units(units);

  float* packed = shared_.floats(static_cast<std::size_t>(column_panels * table_.tile_columns * units));
  pool_.run(column_panels, [&](std::int64_t panel, int) { table_.gemm_pack_b(g, panel, packed); });

  const std::int64_t threads = pool_.threads();
  std::int64_t row_blocks = std::max<std::int64_t>(1, (g.m + kRowsPerTask - 1) / kRowsPerTask);
  row_blocks = std::min(row_panels, (row_blocks + threads - 1) / threads * threads);
  std::int64_t column_blocks = 1;
  while (row_blocks * column_blocks < threads * kTasksPerThread && g.n / (column_blocks * 2) >= 128) column_blocks *= 2;

  const std::int64_t panels = (row_panels + row_blocks - 1) / row_blocks;
  const std::int64_t columns = (column_panels + column_blocks - 1) / column_blocks;
  const std::size_t a_floats = static_cast<std::size_t>(panels * table_.tile_rows * block);
  const bool float_c = g.c.type == Num::kBf16 && block < units;
  const std::size_t c_floats =
      float_c ? static_cast<std::size_t>(panels * table_.tile_rows * columns * table_.tile_columns) : 0;
  for (Scratch& s : worker_) s.floats(a_floats + c_floats);

  pool_.run(row_blocks * column_blocks, [&](std::int64_t i, int worker) {
    const std::int64_t r = i % row_blocks, c = i / row_blocks;
    float* scratch = worker_[static_cast<std::size_t>(worker)].floats(a_floats + c_floats);
    table_.gemm_task(g,
                     {row_panels * r / row_blocks, row_panels * (r + 1) / row_blocks, column_panels * c / column_blocks,
                      column_panels * (c + 1) / column_blocks, packed, scratch, scratch + a_floats});
  });
}

}  // namespace train_gpt_v2
