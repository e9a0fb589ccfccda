#pragma once
// Matrix products of one stream through cuBLAS, and those with GELU in their epilogue through cuBLASLt.
// Errors: std::invalid_argument for a mix of types no product takes, std::runtime_error with cuBLAS's message.

#include <cublasLt.h>
#include <cublas_v2.h>

#include <map>
#include <tuple>

#include "train_gpt_v2/kernels/kernels.h"

namespace train_gpt_v2::cuda {

class Products {
 public:
  // `workspace` is device memory that the products of this object may use.
  Products(cudaStream_t stream, bool tf32, void* workspace, std::size_t workspace_bytes);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  void multiply(const Gemm& g);
  // bf16 only. c = op(A) op(B) + bias and out = gelu(c), rounded once.
  void multiply_gelu(const Gemm& g, const Bf16* bias, const Matrix& out);
  // bf16 only. c = op(A) op(B) gelu'(in), `in` being the c of multiply_gelu().
  void multiply_gelu_backward(const Gemm& g, const ConstMatrix& in);

 private:
  using Key = std::tuple<int, bool, bool, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
  void run(const Gemm& g, cublasLtEpilogue_t epilogue, const void* bias, const void* aux, std::int64_t aux_stride,
           const Matrix& out);

  cudaStream_t stream_;
  bool tf32_;
  void* workspace_;
  std::size_t workspace_bytes_;
  cublasHandle_t blas_ = nullptr;
  cublasLtHandle_t lt_ = nullptr;
  std::map<Key, cublasLtMatmulAlgo_t> chosen_;  // by shape; cleared when it has grown large
};

}  // namespace train_gpt_v2::cuda
