#include "products.h"

#include <stdexcept>
#include <string>

namespace train_gpt_v2::cuda {
namespace {

constexpr std::size_t kMostChoices = 4096;

void check(cublasStatus_t result, const char* what) {
  if (result != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string(what) + ": " + cublasGetStatusString(result));
}

cudaDataType_t data_type(Num num) {
  return num == Num::kFloat ? CUDA_R_32F : CUDA_R_16BF;
}

// Handles of one product, gone with it.
struct Description {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;

  ~Description() {
    if (preference) cublasLtMatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t layout : {a, b, c}) {
      if (layout) cublasLtMatrixLayoutDestroy(layout);
    }
    if (operation) cublasLtMatmulDescDestroy(operation);
  }
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  }
};

}  // namespace

Products::Products(cudaStream_t stream, bool tf32, void* workspace, std::size_t workspace_bytes)
    : stream_(stream), tf32_(tf32), workspace_(workspace), workspace_bytes_(workspace_bytes) {
  check(cublasCreate(&blas_), "cublasCreate");
  check(cublasSetStream(blas_, stream_), "cublasSetStream");
  check(cublasSetWorkspace(blas_, workspace, workspace_bytes), "cublasSetWorkspace");
  check(cublasSetMathMode(blas_, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION), "cublasSetMathMode");
  check(cublasLtCreate(&lt_), "cublasLtCreate");
}

Products::~Products() {
  cublasLtDestroy(lt_);
  cublasDestroy(blas_);
}

// Row-major C = op(A) op(B) is column-major C' = op(B)' op(A)'.
void Products::multiply(const Gemm& g) {
  if (g.a.type != g.b.type || (g.accumulate && g.c.type != Num::kFloat) ||
      (g.a.type == Num::kFloat && g.c.type != Num::kFloat)) {
    throw std::invalid_argument("no CUDA product of these number types");
  }
  const cublasComputeType_t compute =
      g.a.type == Num::kFloat && tf32_ ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  const float one = 1, add = g.accumulate ? 1.f : 0.f;
  check(cublasGemmEx(blas_, g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                     static_cast<int>(g.n), static_cast<int>(g.m), static_cast<int>(g.k), &one, g.b.data,
                     data_type(g.b.type), static_cast<int>(g.b.stride), g.a.data, data_type(g.a.type),
                     static_cast<int>(g.a.stride), &add, g.c.data, data_type(g.c.type), static_cast<int>(g.c.stride),
                     compute, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
}

void Products::multiply_gelu(const Gemm& g, const Bf16* bias, const Matrix& out) {
  run(g, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, bias, g.c.data, g.c.stride, out);
}

void Products::multiply_gelu_backward(const Gemm& g, const ConstMatrix& in) {
  run(g, CUBLASLT_EPILOGUE_DGELU, nullptr, in.data, in.stride, g.c);
}

void Products::run(const Gemm& g, cublasLtEpilogue_t epilogue, const void* bias, const void* aux,
                   std::int64_t aux_stride, const Matrix& out) {
  if (g.a.type != Num::kBf16 || g.b.type != Num::kBf16 || out.type != Num::kBf16 || g.accumulate) {
    throw std::invalid_argument("no CUDA product with GELU of these number types");
  }
  Description d;
  check(cublasLtMatmulDescCreate(&d.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  d.set(CUBLASLT_MATMUL_DESC_TRANSA, g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  d.set(CUBLASLT_MATMUL_DESC_TRANSB, g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  d.set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (bias) d.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  d.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux);
  d.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_stride);
  const auto layout = [](cublasLtMatrixLayout_t& to, bool transposed, std::int64_t rows, std::int64_t columns,
                         std::int64_t stride) {
    check(cublasLtMatrixLayoutCreate(&to, CUDA_R_16BF, static_cast<std::uint64_t>(transposed ? columns : rows),
                                     static_cast<std::uint64_t>(transposed ? rows : columns), stride),
          "cublasLtMatrixLayoutCreate");
  };
  layout(d.a, g.trans_b, g.n, g.k, g.b.stride);
  layout(d.b, g.trans_a, g.k, g.m, g.a.stride);
  layout(d.c, false, g.n, g.m, out.stride);

  const Key key{epilogue, g.trans_a, g.trans_b, g.m, g.n, g.k, g.a.stride, g.b.stride};
  auto found = chosen_.find(key);
  if (found == chosen_.end()) {
    check(cublasLtMatmulPreferenceCreate(&d.preference), "cublasLtMatmulPreferenceCreate");
    check(cublasLtMatmulPreferenceSetAttribute(d.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &workspace_bytes_, sizeof workspace_bytes_),
          "cublasLtMatmulPreferenceSetAttribute");
    cublasLtMatmulHeuristicResult_t best;
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(lt_, d.operation, d.a, d.b, d.c, d.c, d.preference, 1, &best, &count),
          "cublasLtMatmulAlgoGetHeuristic");
    if (count == 0) throw std::runtime_error("cuBLASLt has no product with GELU for this shape");
    if (chosen_.size() >= kMostChoices) chosen_.clear();
    found = chosen_.emplace(key, best.algo).first;
  }
  const float one = 1, zero = 0;
  check(cublasLtMatmul(lt_, d.operation, &one, g.b.data, d.a, g.a.data, d.b, &zero, out.data, d.c, out.data, d.c,
                       &found->second, workspace_, workspace_bytes_, stream_),
        "cublasLtMatmul");
}

}  // namespace train_gpt_v2::cuda
