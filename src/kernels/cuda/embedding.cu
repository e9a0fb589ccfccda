// Rows gathered from the tables, and gradients added back to them.

#include "device.cuh"

namespace train_gpt_v2::cuda {
namespace {

__global__ void embed_pack_kernel(EmbedPack a) {
  const std::int64_t r = blockIdx.x;
  const EmbedRow from = a.source[r];
  const float* first = a.table[from.kind] + from.id * a.width;
  const float* second = a.position[from.kind] ? a.position[from.kind] + from.position * a.width : nullptr;
  for (std::int64_t j = threadIdx.x; j < a.width; j += blockDim.x) {
    a.out[r * a.width + j] = second ? first[j] + second[j] : first[j];
  }
}

// Every element of a table has one owner, which adds its rows in order. A block owns 256 columns and the destinations
// whose hash is blockIdx.y; all its warps look through the list of rows.
constexpr int kOwners = 256, kColumns = 256;

__device__ unsigned owner(int kind, int destination) {
  return (static_cast<unsigned>(destination) * 2654435761u + static_cast<unsigned>(kind) * 40503u) >> 24;
}

__device__ void add_rows(const EmbedScatter& a, bool to_position) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (std::int64_t begin = 0; begin < a.rows; begin += 32) {
    EmbedRow mine{-1, 0, 0};
    if (begin + lane < a.rows) mine = a.source[begin + lane];
    const int destination = to_position ? mine.position : mine.id;
    bool wanted = false;
    if (mine.kind >= 0) {
      const float* table = to_position ? a.position[mine.kind] : a.table[mine.kind];
      wanted = table && owner(mine.kind, destination) == blockIdx.y;
    }
    for (unsigned left = __ballot_sync(0xffffffffu, wanted); left; left &= left - 1) {
      const int source = __ffs(static_cast<int>(left)) - 1;
      const int kind = __shfl_sync(0xffffffffu, mine.kind, source);
      const int row = __shfl_sync(0xffffffffu, destination, source);
      float* table = to_position ? a.position[kind] : a.table[kind];
      if (column < a.width) table[row * a.width + column] += a.grad[(begin + source) * a.width + column];
    }
  }
}

__global__ void __launch_bounds__(kColumns) embed_scatter_kernel(EmbedScatter a) {
  add_rows(a, blockIdx.z == 1);
}

}  // namespace

void embed_pack(const EmbedPack& a, cudaStream_t stream) {
  embed_pack_kernel<<<static_cast<unsigned>(a.rows), 256, 0, stream>>>(a);
}

void embed_scatter(const EmbedScatter& a, cudaStream_t stream) {
  const auto strips = static_cast<unsigned>((a.width + kColumns - 1) / kColumns);
  embed_scatter_kernel<<<dim3(strips, kOwners, 2), kColumns, 0, stream>>>(a);
}

}  // namespace train_gpt_v2::cuda
