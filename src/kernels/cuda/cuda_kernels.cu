// Kernels on a CUDA stream: memory, products, and the launchers of this folder.

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"
#include "products.h"
#include "train_gpt_v2/kernels/cuda.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{32} << 20, kWorkspaceBytes = std::size_t{32} << 20;

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // forgotten here, so that who goes on with less memory does not meet it again
  if (result == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(result));
}
void launched(const char* what) {
  check(cudaGetLastError(), what);
}

// What the kernels read eight numbers at a time must lie so.
void check_layout(const ConstMatrix& m) {
  if (m.data && (m.stride % 8 || reinterpret_cast<std::uintptr_t>(m.data) % 16)) {
    throw std::invalid_argument("CUDA kernels take rows of whole 16-byte pieces");
  }
}
void check_width(std::int64_t width) {
  if (width % 8 || width > cuda::kMaxRowWidth)
    throw std::invalid_argument("CUDA kernels take widths of whole eights up to 8192");
}

// Device memory that grows, by an eighth more than asked for.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }
  template <typename T>
  T* reserve(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    if (bytes > bytes_) {
      check(cudaFree(data_), "cudaFree");  // waits for the work that still reads it
      data_ = nullptr;
      bytes_ = 0;
      check(cudaMalloc(&data_, bytes + bytes / 8), "cudaMalloc");
      bytes_ = bytes + bytes / 8;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class CudaKernels final : public Kernels {
 public:
  CudaKernels(int device, void* stream, bool tf32) : device_(device), stream_(static_cast<cudaStream_t>(stream)) {
    const DeviceScope scope(device_);
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device_), "cudaGetDeviceProperties");
    name_ = std::string("cuda ") + properties.name;
    check(cudaMallocHost(&staging_, kStagingBytes), "cudaMallocHost");
    products_ =
        std::make_unique<cuda::Products>(stream_, tf32, workspace_.reserve<char>(kWorkspaceBytes), kWorkspaceBytes);
  }
  ~CudaKernels() override {
    const DeviceScope scope(device_);
    cudaStreamSynchronize(stream_);
    products_.reset();
    cudaFreeHost(staging_);
  }

  const char* name() const override { return name_.c_str(); }

  void* allocate(std::size_t bytes) override {
    const DeviceScope scope(device_);
    void* memory = nullptr;
    check(cudaMalloc(&memory, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
    zero(memory, bytes);
    return memory;
  }
  void release(void* memory, std::size_t) override {
    const DeviceScope scope(device_);
    cudaFree(memory);
  }
  // Through page-locked memory, so that the host goes on at once.
  void upload(void* to, const void* from, std::size_t bytes) override {
    const DeviceScope scope(device_);
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t piece = std::min(bytes - done, kStagingBytes);
      if (staged_ + piece > kStagingBytes) synchronize();
      char* at = static_cast<char*>(staging_) + staged_;
      std::memcpy(at, static_cast<const char*>(from) + done, piece);
      check(cudaMemcpyAsync(static_cast<char*>(to) + done, at, piece, cudaMemcpyHostToDevice, stream_),
            "cudaMemcpyAsync");
      staged_ += (piece + 255) / 256 * 256;
      done += piece;
    }
  }
  void download(void* to, const void* from, std::size_t bytes) override {
    const DeviceScope scope(device_);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    synchronize();
  }
  void zero(void* memory, std::size_t bytes) override {
    const DeviceScope scope(device_);
    check(cudaMemsetAsync(memory, 0, bytes, stream_), "cudaMemsetAsync");
  }
  // Clearing everything costs one launch, where listing the rows costs more than the bytes saved.
  void zero_rows(float* table, std::int64_t rows, std::int64_t width, const std::uint8_t*) override {
    zero(table, static_cast<std::size_t>(rows * width) * sizeof(float));
  }

  void gemm(const Gemm& g) override;
  void gemm_gelu(const Gemm& g, const BiasGelu& a) override;
  void gemm_gelu_backward(const Gemm& g, const BiasGeluBackward& a) override;
  void drop_residual_ln(const DropResidualLn& a) override {
    if (!a.rows) return;
    const DeviceScope scope(device_);
    check_width(a.width);
    check_layout(a.branch);
    check_layout(a.out);
    cuda::drop_residual_ln(a, stream_);
    launched("drop_residual_ln");
  }
  void ln_backward_drop(const LnBackwardDrop& a) override {
    if (!a.rows) return;
    const DeviceScope scope(device_);
    check_width(a.width);
    check_layout(a.d_out);
    check_layout(a.d_branch);
    cuda::ln_backward_drop(a, floats(cuda::ln_backward_drop_partial(a)), stream_);
    launched("ln_backward_drop");
  }
  void bias_gelu(const BiasGelu& a) override {
    if (!a.rows) return;
    const DeviceScope scope(device_);
    check_strips(a.width, a.in, a.out);
    cuda::bias_gelu(a, stream_);
    launched("bias_gelu");
  }
  void bias_gelu_backward(const BiasGeluBackward& a) override {
    if (!a.rows) return;
    const DeviceScope scope(device_);
    check_strips(a.width, a.in, a.grad);
    cuda::bias_gelu_backward(a, floats(cuda::bias_gelu_backward_partial(a)), stream_);
    launched("bias_gelu_backward");
  }
  void attention(const Attention& a) override;
  void attention_backward(const AttentionBackward& a) override;
  void double_ln_gather(const DoubleLnGather& a) override {
    if (!a.count) return;
    const DeviceScope scope(device_);
    check_width(a.width);
    check_layout(a.out);
    cuda::double_ln_gather(a, stream_);
    launched("double_ln_gather");
  }
  void double_ln_gather_backward(const DoubleLnGatherBackward& a) override {
    const DeviceScope scope(device_);
    check_width(a.forward.width);
    check_layout(a.d_out);
    if (!a.forward.count) return zero(a.d_x, static_cast<std::size_t>(a.total_rows * a.forward.width) * sizeof(float));
    cuda::double_ln_gather_backward(a, floats(cuda::double_ln_gather_backward_partial(a)), stream_);
    launched("double_ln_gather_backward");
  }
  void cross_entropy(const CrossEntropy& a) override {
    if (!a.rows) return;
    const DeviceScope scope(device_);
    check_layout(a.logits);
    check_layout({a.bias, Num::kFloat, 8});
    cuda::cross_entropy(a, stream_);
    launched("cross_entropy");
  }
  void column_sum(const ColumnSum& a) override {
    if (a.times.data) throw std::invalid_argument("column_sum: CUDA has no sums of products");
    const DeviceScope scope(device_);
    check_layout(a.in);
    cuda::column_sum(a, floats(cuda::column_sum_partial(a)), stream_);
    launched("column_sum");
  }
  void embed_pack(const EmbedPack& a) override {
    if (!a.rows) return;
    const DeviceScope scope(device_);
    cuda::embed_pack(a, stream_);
    launched("embed_pack");
  }
  void embed_scatter(const EmbedScatter& a) override {
    if (!a.rows) return;
    const DeviceScope scope(device_);
    cuda::embed_scatter(a, stream_);
    launched("embed_scatter");
  }
  void convert(Bf16* to, const float* from, std::int64_t count) override {
    if (!count) return;
    const DeviceScope scope(device_);
    check_layout({to, Num::kBf16, 8});
    check_layout({from, Num::kFloat, 8});
    cuda::convert(to, from, count, stream_);
    launched("convert");
  }
  double sum_of_squares(const GradientSpan* spans, std::int64_t count) override;
  void adamw(const AdamWStep& s, const AdamWTensor* tensors, std::int64_t count) override;

 private:
  // Kernels run on this object's device, whatever the calling thread works with otherwise.
  class DeviceScope {
   public:
    explicit DeviceScope(int device) {
      check(cudaGetDevice(&before_), "cudaGetDevice");
      if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceScope() { cudaSetDevice(before_); }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

   private:
    int before_ = 0;
  };

  void synchronize() {
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    staged_ = 0;
  }
  float* floats(std::int64_t count) { return partial_.reserve<float>(static_cast<std::size_t>(count)); }
  static void check_strips(std::int64_t width, const ConstMatrix& a, const ConstMatrix& b) {
    if (width % 8) throw std::invalid_argument("CUDA kernels take widths of whole eights");
    check_layout(a);
    check_layout(b);
  }
  template <typename T>
  T* send(DeviceBuffer& buffer, const std::vector<T>& values) {
    T* to = buffer.reserve<T>(values.size());
    upload(to, values.data(), values.size() * sizeof(T));
    return to;
  }
  // The keep bits of one layer's attention, made in forward and still there in backward.
  struct LayerMask {
    DeviceBuffer bits;
    Dropout dropout;  // whose decisions it holds; none for threshold 0
    std::int64_t heads = 0;
  };
  template <typename T>
  static std::vector<cuda::Piece> pieces(const T* tensors, std::int64_t count);
  cuda::AttentionDevice prepare(const Attention& a, bool backward);
  void plan_tiles(const Attention& a);

  int device_;
  cudaStream_t stream_;
  std::string name_;
  void* staging_ = nullptr;
  std::size_t staged_ = 0;  // bytes of staging_ that copies under way may read
  DeviceBuffer workspace_, partial_, bias_, tables_, piece_table_, sums_, tiles_, stats_;
  std::vector<std::unique_ptr<LayerMask>> masks_;
  std::unique_ptr<cuda::Products> products_;
  std::vector<Segment> planned_;  // what tiles_ holds
  std::int64_t tile_count_ = 0, tile_rows_ = 0, longest_ = 0;
};

void CudaKernels::gemm(const Gemm& g) {
  if (!g.m || !g.n) return;
  const DeviceScope scope(device_);
  products_->multiply(g);
}

void CudaKernels::gemm_gelu(const Gemm& g, const BiasGelu& a) {
  if (g.a.type != Num::kBf16) return Kernels::gemm_gelu(g, a);
  if (!g.m || !g.n) return;
  const DeviceScope scope(device_);
  check_strips(a.width, a.in, a.out);
  Bf16* bias = bias_.reserve<Bf16>(static_cast<std::size_t>(a.width));
  cuda::convert(bias, a.bias, a.width, stream_);
  products_->multiply_gelu(g, bias, a.out);
  launched("gemm_gelu");
}

void CudaKernels::gemm_gelu_backward(const Gemm& g, const BiasGeluBackward& a) {
  if (g.a.type != Num::kBf16) return Kernels::gemm_gelu_backward(g, a);
  if (!g.m || !g.n) return;
  const DeviceScope scope(device_);
  check_strips(a.width, a.in, a.grad);
  products_->multiply_gelu_backward(g, a.in);
  if (a.d_bias) column_sum({a.rows, a.width, a.grad, a.d_bias, a.accumulate});
}

// Tiles of 64 rows, the same for every layer of a step: made anew only when the segments change.
void CudaKernels::plan_tiles(const Attention& a) {
  const auto same = [](const Segment& x, const Segment& y) { return x.begin == y.begin && x.length == y.length; };
  if (std::equal(planned_.begin(), planned_.end(), a.segments, a.segments + a.count, same)) return;
  for (auto& mask : masks_) mask->dropout = {};
  planned_.clear();  // until the tiles are there: sending them may fail
  std::vector<Segment> segments(a.segments, a.segments + a.count);
  std::vector<std::int32_t> order(segments.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t x, std::int32_t y) {
    return segments[static_cast<std::size_t>(x)].length > segments[static_cast<std::size_t>(y)].length;
  });
  std::vector<cuda::AttentionTile> by_query, by_key;
  tile_rows_ = longest_ = 0;
  for (const std::int32_t s : order) {
    const Segment& segment = segments[static_cast<std::size_t>(s)];
    const std::int32_t blocks = (segment.length + 63) / 64;
    for (std::int32_t block = 0; block < blocks; ++block) {
      by_query.push_back({segment.begin, segment.length, s, blocks - 1 - block});
      by_key.push_back({segment.begin, segment.length, s, block});
    }
    tile_rows_ = std::max<std::int64_t>(tile_rows_, segment.begin + segment.length);
    longest_ = std::max<std::int64_t>(longest_, segment.length);
  }
  tile_count_ = static_cast<std::int64_t>(by_query.size());
  by_query.insert(by_query.end(), by_key.begin(), by_key.end());
  send(tiles_, by_query);
  planned_ = std::move(segments);
}

cuda::AttentionDevice CudaKernels::prepare(const Attention& a, bool backward) {
  if (a.head_dim > cuda::kMaxHeadDim) throw std::invalid_argument("CUDA attention takes head sizes up to 256");
  check_layout(a.qkv);
  check_layout(a.out);
  check_layout({a.bias, Num::kFloat, 8});
  plan_tiles(a);
  cuda::AttentionDevice d;
  d.by_query = tiles_.reserve<cuda::AttentionTile>(0);
  d.by_key = d.by_query + tile_count_;
  d.tiles = tile_count_;
  d.rows = tile_rows_;
  d.mask_blocks = (longest_ + 127) / 128;
  if (a.dropout.active()) {
    while (masks_.size() <= a.layer) masks_.push_back(std::make_unique<LayerMask>());
    LayerMask& mask = *masks_[a.layer];
    d.mask = mask.bits.reserve<uint4>(static_cast<std::size_t>(a.heads * d.rows * d.mask_blocks));
    const Dropout &have = mask.dropout, &want = a.dropout;
    const bool same = mask.heads == a.heads && have.threshold == want.threshold && have.key.seed == want.key.seed &&
                      have.key.step == want.key.step && have.key.micro == want.key.micro;
    if (!same) cuda::attention_mask(a, d, stream_);
    mask.dropout = want;
    mask.heads = a.heads;
  }
  if (backward) d.stats = stats_.reserve<float4>(static_cast<std::size_t>(a.heads * d.rows));
  return d;
}

void CudaKernels::attention(const Attention& a) {
  if (!a.count) return;
  const DeviceScope scope(device_);
  const cuda::AttentionDevice d = prepare(a, false);
  if (cuda::attention_mma_takes(a)) {
    cuda::attention_mma(a, d, stream_);
  } else {
    cuda::attention_simple(a, d, stream_);
  }
  launched("attention");
}

void CudaKernels::attention_backward(const AttentionBackward& b) {
  if (!b.forward.count) return;
  const DeviceScope scope(device_);
  check_layout(b.d_out);
  check_layout(b.d_qkv);
  const cuda::AttentionDevice d = prepare(b.forward, true);
  if (cuda::attention_mma_takes(b.forward)) {
    cuda::attention_mma_backward(b, d, stream_);
  } else {
    cuda::attention_simple_backward(b, d, stream_);
  }
  launched("attention_backward");
}

template <typename T>
std::vector<cuda::Piece> CudaKernels::pieces(const T* tensors, std::int64_t count) {
  std::vector<cuda::Piece> result;
  for (std::int64_t t = 0; t < count; ++t) {
    if (tensors[t].row_flags) throw std::invalid_argument("CUDA kernels take no row flags");
    const std::int64_t size = tensors[t].rows * tensors[t].width;
    for (std::int64_t begin = 0; begin < size; begin += cuda::kPieceElements) {
      result.push_back({static_cast<std::int32_t>(t),
                        static_cast<std::int32_t>(std::min(cuda::kPieceElements, size - begin)), begin});
    }
  }
  return result;
}

double CudaKernels::sum_of_squares(const GradientSpan* spans, std::int64_t count) {
  const std::vector<cuda::Piece> list = pieces(spans, count);
  if (list.empty()) return 0;
  const DeviceScope scope(device_);
  std::vector<const float*> tensors;
  for (std::int64_t t = 0; t < count; ++t) tensors.push_back(spans[t].data);
  const float* const* table = send(tables_, tensors);
  const cuda::Piece* parts = send(piece_table_, list);
  double* sums = sums_.reserve<double>(list.size() + 1);
  cuda::sum_of_squares(table, parts, static_cast<std::int64_t>(list.size()), sums + 1, sums, stream_);
  launched("sum_of_squares");
  double total = 0;
  download(&total, sums, sizeof total);
  return total;
}

void CudaKernels::adamw(const AdamWStep& s, const AdamWTensor* tensors, std::int64_t count) {
  const std::vector<cuda::Piece> list = pieces(tensors, count);
  if (list.empty()) return;
  const DeviceScope scope(device_);
  const double step = static_cast<double>(s.step);
  const double correction1 = 1 - std::pow(s.beta1, step), correction2 = 1 - std::pow(s.beta2, step);
  std::vector<cuda::AdamWTarget> targets;
  for (std::int64_t i = 0; i < count; ++i) {
    const AdamWTensor& t = tensors[i];
    targets.push_back(
        {t.parameter,
         t.exp_avg,
         t.exp_avg_sq,
         t.gradient,
         t.ema,
         t.copy,
         {static_cast<float>(1 - s.beta1), static_cast<float>(s.beta2), static_cast<float>(1 - s.beta2),
          static_cast<float>(s.eps), static_cast<float>(1 - t.learning_rate * t.weight_decay),
          static_cast<float>(t.learning_rate / correction1), static_cast<float>(1 / std::sqrt(correction2)),
          s.gradient_scale, static_cast<float>(1 - s.ema_decay)}});
  }
  const cuda::AdamWTarget* table = send(tables_, targets);
  cuda::adamw(table, send(piece_table_, list), static_cast<std::int64_t>(list.size()), stream_);
  launched("adamw");
}

}  // namespace

std::unique_ptr<Kernels> make_cuda_kernels(int device, void* stream, bool tf32) {
  return std::make_unique<CudaKernels>(device, stream, tf32);
}

bool cuda_kernels_take(std::int64_t width, std::int64_t heads) {
  return width > 0 && heads > 0 && width % 8 == 0 && width <= cuda::kMaxRowWidth && width % heads == 0 &&
         width / heads <= cuda::kMaxHeadDim;
}

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace train_gpt_v2
