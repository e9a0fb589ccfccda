#pragma once
// Splits every kernel of one instruction set among threads. Splits may depend on the number of threads only where they
// cannot change a sum: rows and columns of outputs, never the order in which one output is added up.

#include <cstring>
#include <string>
#include <vector>

#include "isa/table.h"
#include "scratch.h"
#include "thread_pool.h"

namespace train_gpt_v2 {

class CpuKernels final : public Kernels {
 public:
  CpuKernels(int threads, Isa isa);
  const char* name() const override { return name_.c_str(); }

  void* allocate(std::size_t bytes) override;
  void release(void* memory, std::size_t bytes) override;
  void upload(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void zero(void* memory, std::size_t bytes) override;
  void zero_rows(float* table, std::int64_t rows, std::int64_t width, const std::uint8_t* row_flags) override;

  void gemm(const Gemm&) override;
  void drop_residual_ln(const DropResidualLn&) override;
  void ln_backward_drop(const LnBackwardDrop&) override;
  void bias_gelu(const BiasGelu&) override;
  void bias_gelu_backward(const BiasGeluBackward&) override;
  void attention(const Attention&) override;
  void attention_backward(const AttentionBackward&) override;
  void double_ln_gather(const DoubleLnGather&) override;
  void double_ln_gather_backward(const DoubleLnGatherBackward&) override;
  void cross_entropy(const CrossEntropy&) override;
  void column_sum(const ColumnSum&) override;
  void embed_pack(const EmbedPack&) override;
  void embed_scatter(const EmbedScatter&) override;
  void convert(Bf16* to, const float* from, std::int64_t count) override;
  double sum_of_squares(const GradientSpan* spans, std::int64_t count) override;
  void adamw(const AdamWStep&, const AdamWTensor* tensors, std::int64_t count) override;

 private:
  // body(begin, end, chunk) over kRowChunks fixed chunks of `rows`.
  template <typename Body>
  void for_row_chunks(std::int64_t rows, const Body& body);
  // partial: [kRowChunks, stride]; adds the chunks of columns [0, width) in order into out (skipped when null).
  void finish_column_sum(const float* partial, std::int64_t stride, std::int64_t width, float* out, bool accumulate);
  template <typename Task>
  void for_heads(const Attention& a, const Task& task);

  const KernelTable& table_;
  ThreadPool pool_;
  std::string name_;
  Scratch shared_;
  std::vector<Scratch> worker_;
  std::vector<double> sums_;
};

}  // namespace train_gpt_v2
