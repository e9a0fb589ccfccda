#include "cpu_kernels.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kColumnBlock = 64;  // one cache line of bf16 pairs, four of float

std::int64_t blocks(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

}  // namespace

CpuKernels::CpuKernels(int threads, Isa isa)
    : table_(kernel_table(isa)),
      pool_(threads),
      name_(std::string("cpu ") + isa_name(isa) + ", " + std::to_string(threads) +
            (threads == 1 ? " thread" : " threads")),
      worker_(static_cast<std::size_t>(threads)) {}

void* CpuKernels::allocate(std::size_t bytes) { return map_memory(bytes); }

void CpuKernels::release(void* memory, std::size_t bytes) {
  unmap_memory(memory, bytes);
}

void CpuKernels::zero(void* memory, std::size_t bytes) {
  constexpr std::size_t kBlock = std::size_t{1} << 20;
  pool_.run(static_cast<std::int64_t>((bytes + kBlock - 1) / kBlock), [&](std::int64_t i, int) {
    const std::size_t at = static_cast<std::size_t>(i) * kBlock;
    std::memset(static_cast<char*>(memory) + at, 0, std::min(kBlock, bytes - at));
  });
}

void CpuKernels::zero_rows(float* table, std::int64_t rows, std::int64_t width, const std::uint8_t* row_flags) {
  for (std::int64_t r = 0; r < rows; ++r) {
    if (row_flags[r]) std::memset(table + r * width, 0, static_cast<std::size_t>(width) * sizeof(float));
  }
}

template <typename Body>
void CpuKernels::for_row_chunks(std::int64_t rows, const Body& body) {
  pool_.run(kRowChunks, [&](std::int64_t c, int) {
    const std::int64_t begin = rows * c / kRowChunks, end = rows * (c + 1) / kRowChunks;
    body(begin, end, c);
  });
}

void CpuKernels::finish_column_sum(const float* partial, std::int64_t stride, std::int64_t width, float* out,
                                   bool accumulate) {
  if (!out) return;
  constexpr std::int64_t kBlock = 512;
  pool_.run(blocks(width, kBlock), [&](std::int64_t i, int) {
    table_.add_partials(partial, kRowChunks, stride, i * kBlock, std::min(width, (i + 1) * kBlock), out, accumulate);
  });
}

void CpuKernels::drop_residual_ln(const DropResidualLn& a) {
  for_row_chunks(a.rows,
                 [&](std::int64_t begin, std::int64_t end, std::int64_t) { table_.drop_residual_ln(a, begin, end); });
}

void CpuKernels::ln_backward_drop(const LnBackwardDrop& a) {
  const std::int64_t stride = 3 * a.width;
  float* partial = shared_.floats(static_cast<std::size_t>(kRowChunks * stride));
  for_row_chunks(a.rows, [&](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
    table_.ln_backward_drop(a, begin, end, partial + chunk * stride);
  });
  if (a.d_out.data) {
    finish_column_sum(partial, stride, a.width, a.d_gamma, a.accumulate);
    finish_column_sum(partial + a.width, stride, a.width, a.d_beta, a.accumulate);
  }
  if (a.d_branch.data) finish_column_sum(partial + 2 * a.width, stride, a.width, a.d_bias, a.accumulate);
}

void CpuKernels::bias_gelu(const BiasGelu& a) {
  for_row_chunks(a.rows, [&](std::int64_t begin, std::int64_t end, std::int64_t) { table_.bias_gelu(a, begin, end); });
}

void CpuKernels::bias_gelu_backward(const BiasGeluBackward& a) {
  float* partial = shared_.floats(static_cast<std::size_t>(kRowChunks * a.width));
  for_row_chunks(a.rows, [&](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
    table_.bias_gelu_backward(a, begin, end, partial + chunk * a.width);
  });
  finish_column_sum(partial, a.width, a.width, a.d_bias, a.accumulate);
}

template <typename Task>
void CpuKernels::for_heads(const Attention& a, const Task& task) {
  if (!a.count) return;
  std::vector<std::int32_t> order(static_cast<std::size_t>(a.count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t x, std::int32_t y) { return a.segments[x].length > a.segments[y].length; });
  const std::size_t bytes = table_.attention_scratch(a, a.segments[order[0]].length);
  for (Scratch& s : worker_) s.bytes(bytes);
  pool_.run(a.count * a.heads, [&](std::int64_t i, int worker) {
    task(order[static_cast<std::size_t>(i / a.heads)], i % a.heads,
         worker_[static_cast<std::size_t>(worker)].bytes(bytes));
  });
}

void CpuKernels::attention(const Attention& a) {
  for_heads(
      a, [&](std::int64_t segment, std::int64_t head, void* scratch) { table_.attention(a, segment, head, scratch); });
}

void CpuKernels::attention_backward(const AttentionBackward& a) {
  for_heads(a.forward, [&](std::int64_t segment, std::int64_t head, void* scratch) {
    table_.attention_backward(a, segment, head, scratch);
  });
}

void CpuKernels::double_ln_gather(const DoubleLnGather& a) {
  for_row_chunks(a.count,
                 [&](std::int64_t begin, std::int64_t end, std::int64_t) { table_.double_ln_gather(a, begin, end); });
}

void CpuKernels::double_ln_gather_backward(const DoubleLnGatherBackward& a) {
  const std::int64_t width = a.forward.width, stride = 5 * width;
  float* partial = shared_.floats(static_cast<std::size_t>(kRowChunks * stride));
  zero(a.d_x, static_cast<std::size_t>(a.total_rows * width) * sizeof(float));
  for_row_chunks(a.forward.count, [&](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
    table_.double_ln_gather_backward(a, begin, end, partial + chunk * stride);
  });
  finish_column_sum(partial, stride, width, a.d_gamma1, a.accumulate);
  finish_column_sum(partial + width, stride, width, a.d_beta1, a.accumulate);
  finish_column_sum(partial + 2 * width, stride, width, a.d_gamma2, a.accumulate);
  finish_column_sum(partial + 3 * width, stride, width, a.d_beta2, a.accumulate);
}

void CpuKernels::cross_entropy(const CrossEntropy& a) {
  pool_.run(a.rows, [&](std::int64_t row, int) { table_.cross_entropy(a, row); });
}

void CpuKernels::column_sum(const ColumnSum& a) {
  if (a.times.data && a.times.type != a.in.type) {
    throw std::invalid_argument("column_sum: this mix of types is not provided");
  }
  pool_.run(blocks(a.columns, kColumnBlock), [&](std::int64_t i, int) {
    table_.column_sum(a, i * kColumnBlock, std::min(a.columns, (i + 1) * kColumnBlock));
  });
}

void CpuKernels::embed_pack(const EmbedPack& a) {
  for_row_chunks(a.rows, [&](std::int64_t begin, std::int64_t end, std::int64_t) { table_.embed_pack(a, begin, end); });
}

void CpuKernels::embed_scatter(const EmbedScatter& a) {
  pool_.run(blocks(a.width, kColumnBlock), [&](std::int64_t i, int) {
    table_.embed_scatter(a, i * kColumnBlock, std::min(a.width, (i + 1) * kColumnBlock));
  });
}

void CpuKernels::convert(Bf16* to, const float* from, std::int64_t count) {
  constexpr std::int64_t kBlock = 65536;
  pool_.run(blocks(count, kBlock), [&](std::int64_t i, int) {
    table_.convert(to + i * kBlock, from + i * kBlock, std::min(kBlock, count - i * kBlock));
  });
}

std::unique_ptr<Kernels> make_cpu_kernels(int threads, Isa isa) {
  if (threads < 1) throw std::invalid_argument("make_cpu_kernels: at least one thread");
  if (!isa_available(isa)) throw std::invalid_argument(std::string("this processor has no ") + isa_name(isa));
  return std::make_unique<CpuKernels>(threads, isa);
}

}  // namespace train_gpt_v2
