#pragma once
// The kernels of one GPT training step behind one interface of plain pointers, for the CPU and for a CUDA stream
// (kernels/cuda.h).
//
// Matrices are row-major; `stride` counts elements between rows. N packed tokens, D model width, F = 4D, H heads.
// Activations are float or bf16 (Num); statistics, residual stream, biases and every parameter gradient are float.
// Gradient outputs may be null (frozen parameter: not computed) and are added to when `accumulate` is set.
// Results do not depend on the number of threads: every output has one owner and one order of summation (column sums
// go over kRowChunks fixed chunks). NaN and infinity go through to losses and norms.
// Memory is the caller's (allocate/release of the same object); one caller at a time per object.
// Errors: std::invalid_argument (a mix of types no kernel takes), std::bad_alloc; sizes are the caller's duty.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "train_gpt_v2/kernels/bf16.h"
#include "train_gpt_v2/kernels/dropout.h"
#include "train_gpt_v2/kernels/isa.h"
#include "train_gpt_v2/kernels/optimizer_pass.h"

namespace train_gpt_v2 {

inline constexpr int kRowChunks = 64;  // part of the definition of every column sum over rows

enum class Num : std::uint8_t { kFloat, kBf16 };

struct Matrix {
  void* data = nullptr;
  Num type = Num::kFloat;
  std::int64_t stride = 0;
};

struct ConstMatrix {
  const void* data = nullptr;
  Num type = Num::kFloat;
  std::int64_t stride = 0;

  ConstMatrix() = default;
  ConstMatrix(const void* data_, Num type_, std::int64_t stride_) : data(data_), type(type_), stride(stride_) {}
  ConstMatrix(const Matrix& m) : data(m.data), type(m.type), stride(m.stride) {}  // NOLINT: meant to be implicit
};

// Where the dropout of a row-wise kernel takes its decisions: decisions(site, rows[r], column).
struct DropoutPlace {
  Dropout dropout;
  std::uint32_t site = 0;
  const std::uint32_t* rows = nullptr;  // dropout_row() of every packed row; may be null when dropout is off
};

// C[m,n] = op(A) op(B) (+ C). A is stored [m,k], or [k,m] when trans_a; B is stored [k,n], or [n,k] when trans_b.
// A and B have one type; products are summed in float. accumulate needs a float C.
struct Gemm {
  bool trans_a = false, trans_b = false;
  std::int64_t m = 0, n = 0, k = 0;
  ConstMatrix a, b;
  Matrix c;
  bool accumulate = false;
};

// residual_out = residual_in + dropout(branch + bias); out = LayerNorm(residual_out) * gamma + beta (eps 1e-5).
// Null residual_in or bias count as zero; a null branch leaves residual_out alone and normalises residual_in.
struct DropResidualLn {
  std::int64_t rows = 0, width = 0;
  const float* residual_in = nullptr;
  ConstMatrix branch;
  const float* bias = nullptr;
  DropoutPlace place;
  float* residual_out = nullptr;
  const float *gamma = nullptr, *beta = nullptr;
  Matrix out;                              // null data: no LayerNorm
  float *mean = nullptr, *rstd = nullptr;  // [rows]
};

// d_residual += LayerNorm backward of d_out (skipped when d_out is null); then, when d_branch is given,
// d_branch = dropout backward of d_residual and d_bias = its column sum.
struct LnBackwardDrop {
  std::int64_t rows = 0, width = 0;
  ConstMatrix d_out;
  const float *x = nullptr, *mean = nullptr, *rstd = nullptr, *gamma = nullptr;
  float* d_residual = nullptr;
  float *d_gamma = nullptr, *d_beta = nullptr;
  Matrix d_branch;
  DropoutPlace place;
  float* d_bias = nullptr;
  bool accumulate = false;  // d_gamma, d_beta, d_bias
};

// out = gelu_new(in + bias): 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))).
struct BiasGelu {
  std::int64_t rows = 0, width = 0;
  ConstMatrix in;
  const float* bias = nullptr;
  Matrix out;
};

// grad *= gelu_new'(in + bias), in place; d_bias = its column sum.
struct BiasGeluBackward {
  std::int64_t rows = 0, width = 0;
  ConstMatrix in;
  const float* bias = nullptr;
  Matrix grad;
  float* d_bias = nullptr;
  bool accumulate = false;
};

// Packed rows of one sample, which attend to each other causally and to nobody else.
struct Segment {
  std::int32_t begin = 0;
  std::int32_t length = 0;
};

// out = dropout(softmax(causal(q k' / sqrt(head_dim)))) v per segment and head. qkv [N, 3 * heads * head_dim] without
// bias (added here); log_sum [heads, log_sum_stride] keeps the log of each row's sum for backward. Sample number of the
// dropout rows = index of the segment, position = row within it.
struct Attention {
  const Segment* segments = nullptr;  // host memory
  std::int64_t count = 0;
  std::int64_t heads = 0, head_dim = 0;
  ConstMatrix qkv;
  const float* bias = nullptr;
  Matrix out;
  float* log_sum = nullptr;
  std::int64_t log_sum_stride = 0;
  Dropout dropout;
  std::uint32_t layer = 0;
};

struct AttentionBackward {
  Attention forward;  // as it was called
  ConstMatrix d_out;
  Matrix d_qkv;
};

// The rows listed are normalised twice, back to back (ln_f then final_norm): y = LN1(x[rows]), out = LN2(y).
struct DoubleLnGather {
  std::int64_t count = 0, width = 0;
  const std::int32_t* rows = nullptr;  // distinct
  const float* x = nullptr;
  const float *gamma1 = nullptr, *beta1 = nullptr, *gamma2 = nullptr, *beta2 = nullptr;
  float* y = nullptr;  // [count, width]
  Matrix out;
  float* statistics = nullptr;  // [count, 4]: mean1, rstd1, mean2, rstd2
};

// d_x [total_rows, width] is overwritten: zero in the rows not listed.
struct DoubleLnGatherBackward {
  DoubleLnGather forward;
  std::int64_t total_rows = 0;
  ConstMatrix d_out;
  float* d_x = nullptr;
  float *d_gamma1 = nullptr, *d_beta1 = nullptr, *d_gamma2 = nullptr, *d_beta2 = nullptr;
  bool accumulate = false;
};

// Cross entropy of logits + bias per row. With `gradient` the logits become coefficient * (softmax - one_hot).
// rank[r] = number of classes before the target in descending order (0: top-1 is right; ties go to the lower index).
struct CrossEntropy {
  std::int64_t rows = 0, classes = 0;
  Matrix logits;
  const float* bias = nullptr;
  const std::int32_t* targets = nullptr;
  bool gradient = false;
  float coefficient = 1;
  float* loss = nullptr;
  std::int32_t* rank = nullptr;
};

// With `times`, a matrix of the same type: of the products in ∘ times. Only the CPU has that.
struct ColumnSum {
  std::int64_t rows = 0, columns = 0;
  ConstMatrix in;
  float* out = nullptr;
  bool accumulate = false;
  ConstMatrix times = {};
};

// Row r comes from table[kind] row id, plus position[kind] row position (when that table is not null).
inline constexpr int kEmbedKinds = 4;
struct EmbedRow {
  std::int32_t kind = 0, id = 0, position = 0;
};
struct EmbedPack {
  std::int64_t rows = 0, width = 0;
  const EmbedRow* source = nullptr;
  const float* table[kEmbedKinds] = {};
  const float* position[kEmbedKinds] = {};
  float* out = nullptr;
};
// Adds row r of `grad` to the rows it came from; null tables are skipped.
struct EmbedScatter {
  std::int64_t rows = 0, width = 0;
  const EmbedRow* source = nullptr;
  const float* grad = nullptr;
  float* table[kEmbedKinds] = {};
  float* position[kEmbedKinds] = {};
};

class Kernels {
 public:
  virtual ~Kernels() = default;
  virtual const char* name() const = 0;           // for the log: "cpu avx512_bf16, 2 threads"
  virtual void* allocate(std::size_t bytes) = 0;  // zero; costs memory where written first; 64-byte aligned
  virtual void release(void* memory, std::size_t bytes) = 0;
  virtual void upload(void* to, const void* from, std::size_t bytes) = 0;
  virtual void download(void* to, const void* from, std::size_t bytes) = 0;
  virtual void zero(void* memory, std::size_t bytes) = 0;
  // At least the rows whose flag (host memory) is set become zero; the others hold zeros already.
  virtual void zero_rows(float* table, std::int64_t rows, std::int64_t width, const std::uint8_t* row_flags) = 0;
  virtual void gemm(const Gemm&) = 0;
  // A product into `in` of a BiasGelu and that BiasGelu; a product into `grad` and the backward pass. A GPU may do both
  // at once: what the first leaves in `in` is for the second alone. On the CPU it is the product.
  virtual void gemm_gelu(const Gemm& product, const BiasGelu& then) {
    gemm(product);
    bias_gelu(then);
  }
  virtual void gemm_gelu_backward(const Gemm& product, const BiasGeluBackward& then) {
    gemm(product);
    bias_gelu_backward(then);
  }
  virtual void drop_residual_ln(const DropResidualLn&) = 0;
  virtual void ln_backward_drop(const LnBackwardDrop&) = 0;
  virtual void bias_gelu(const BiasGelu&) = 0;
  virtual void bias_gelu_backward(const BiasGeluBackward&) = 0;
  virtual void attention(const Attention&) = 0;
  virtual void attention_backward(const AttentionBackward&) = 0;
  virtual void double_ln_gather(const DoubleLnGather&) = 0;
  virtual void double_ln_gather_backward(const DoubleLnGatherBackward&) = 0;
  virtual void cross_entropy(const CrossEntropy&) = 0;
  virtual void column_sum(const ColumnSum&) = 0;
  virtual void embed_pack(const EmbedPack&) = 0;
  virtual void embed_scatter(const EmbedScatter&) = 0;
  virtual void convert(Bf16* to, const float* from, std::int64_t count) = 0;
  virtual double sum_of_squares(const GradientSpan* spans, std::int64_t count) = 0;  // float within 4096, double above
  virtual void adamw(const AdamWStep&, const AdamWTensor* tensors, std::int64_t count) = 0;
};

// threads >= 1 workers, the calling thread being one of them.
std::unique_ptr<Kernels> make_cpu_kernels(int threads, Isa isa = best_isa());

}  // namespace train_gpt_v2
