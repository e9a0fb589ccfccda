// Times of the CUDA kernels at the shapes of a training step:
//   bench_cuda [WIDTH LAYERS HEADS [SAMPLES]]      (512 12 8 64 when left out)
// Columns: milliseconds a call, calls a step, their product, TFLOP/s or GB/s where that means something.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "train_gpt_v2/kernels/cuda.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kTextRows = 24001, kMelCodes = 8194;

struct Bench {
  std::unique_ptr<Kernels> kernels = make_cuda_kernels(0, nullptr, false);
  double total = 0;

  void* numbers(std::int64_t count, Num type = Num::kBf16, float scale = 0.5f) {
    std::mt19937 engine(static_cast<unsigned>(count));
    std::vector<float> values(static_cast<std::size_t>(std::min<std::int64_t>(count, 1 << 20)));
    for (float& v : values) v = scale * (static_cast<float>(engine() % 2001) / 1000.f - 1.f);
    const std::size_t size = type == Num::kFloat ? 4 : 2;
    std::vector<Bf16> halves;
    for (const float v : values) halves.push_back(to_bf16(v));
    const void* from = type == Num::kFloat ? static_cast<const void*>(values.data()) : halves.data();
    void* memory = kernels->allocate(static_cast<std::size_t>(count) * size);
    for (std::int64_t at = 0; at < count; at += static_cast<std::int64_t>(values.size())) {
      const auto piece = std::min<std::int64_t>(count - at, static_cast<std::int64_t>(values.size()));
      kernels->upload(static_cast<char*>(memory) + static_cast<std::size_t>(at) * size, from,
                      static_cast<std::size_t>(piece) * size);
    }
    return memory;
  }
  float* floats(std::int64_t count, float scale = 0.5f) {
    return static_cast<float*>(numbers(count, Num::kFloat, scale));
  }
  template <typename T>
  T* put(const std::vector<T>& values) {
    void* memory = kernels->allocate(values.size() * sizeof(T));
    kernels->upload(memory, values.data(), values.size() * sizeof(T));
    return static_cast<T*>(memory);
  }
  // work: operations for "TFLOP/s", bytes for "GB/s", 0 for neither.
  void time(const std::string& name, std::int64_t calls, const char* unit, double work,
            const std::function<void()>& body) {
    char byte[8];
    void* somewhere = kernels->allocate(sizeof byte);
    body();
    kernels->download(byte, somewhere, sizeof byte);
    constexpr int kRepeats = 10;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kRepeats; ++i) body();
    kernels->download(byte, somewhere, sizeof byte);
    const double ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count() / kRepeats;
    total += ms * static_cast<double>(calls);
    std::printf("%-28s %8.3f ms x %4ld = %8.2f ms", name.c_str(), ms, static_cast<long>(calls),
                ms * static_cast<double>(calls));
    if (work > 0) std::printf("  %8.1f %s", work / ms / (unit[0] == 'T' ? 1e9 : 1e6), unit);
    std::printf("\n");
    kernels->release(somewhere, sizeof byte);
  }
};

int run(std::int64_t d, std::int64_t layers, std::int64_t heads, std::int64_t samples) {
  Bench b;
  Kernels& k = *b.kernels;
  std::vector<Segment> segments;
  std::vector<EmbedRow> source;
  std::vector<std::uint32_t> names;
  std::vector<std::int32_t> scored, targets;
  double squares = 0;
  std::mt19937 engine(7);
  for (std::int64_t s = 0; s < samples; ++s) {
    const auto mel = static_cast<std::int32_t>(60 + engine() % 480), text = mel / 5, length = 37 + text + mel;
    segments.push_back({static_cast<std::int32_t>(source.size()), length});
    squares += static_cast<double>(length) * length;
    for (std::int32_t r = 0; r < length; ++r) {
      if (r >= length - mel - 1) {
        scored.push_back(static_cast<std::int32_t>(source.size()));
        targets.push_back(static_cast<std::int32_t>(engine() % kMelCodes));
      }
      source.push_back({r < 32             ? 0
                        : r < 34           ? 1
                        : r < length - mel ? 2
                                           : 3,
                        static_cast<std::int32_t>(engine() % (r < 34 ? 2 : 8000)), r});
      names.push_back(dropout_row(static_cast<std::uint32_t>(s), static_cast<std::uint32_t>(r)));
    }
  }
  const auto n = static_cast<std::int64_t>(source.size()), m = static_cast<std::int64_t>(scored.size());
  const std::int64_t f = 4 * d, text_rows = m / 5;
  const double nd = static_cast<double>(n * d);
  std::printf("%s: width %ld, %ld layers, %ld heads, %ld samples, %ld packed rows\n", k.name(), static_cast<long>(d),
              static_cast<long>(layers), static_cast<long>(heads), static_cast<long>(samples), static_cast<long>(n));
  const auto bf16 = [](void* p, std::int64_t stride) { return Matrix{p, Num::kBf16, stride}; };
  void *a = b.numbers(n * d), *wide = b.numbers(n * f), *out = b.numbers(n * f), *qkv = b.numbers(n * 3 * d),
       *d_qkv = b.numbers(n * 3 * d), *weight = b.numbers(d * f, Num::kBf16, 0.05f);
  float *grad = b.floats(d * f), *x = b.floats(n * d), *dx = b.floats(n * d), *y = b.floats(n * d), *mean = b.floats(n),
        *rstd = b.floats(n), *vector = b.floats(3 * f), *sums = b.floats(3 * f), *log_sum = b.floats(n * heads);

  const auto product = [&](const char* name, bool ta, bool tb, std::int64_t rows, std::int64_t columns,
                           std::int64_t inner, const void* p, std::int64_t ps, const void* q, std::int64_t qs, Matrix c,
                           bool add) {
    b.time(name, layers, "TFLOP/s",
           2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(inner), [=, &k] {
             k.gemm({ta, tb, rows, columns, inner, {p, Num::kBf16, ps}, {q, Num::kBf16, qs}, c, add});
           });
  };
  product("qkv", false, false, n, 3 * d, d, a, d, weight, 3 * d, bf16(qkv, 3 * d), false);
  product("proj", false, false, n, d, d, a, d, weight, d, bf16(out, d), false);
  product("fc", false, false, n, f, d, a, d, weight, f, bf16(out, f), false);
  product("mlp proj", false, false, n, d, f, wide, f, weight, d, bf16(out, d), false);
  product("qkv data gradient", false, true, n, d, 3 * d, qkv, 3 * d, weight, 3 * d, bf16(out, d), false);
  product("proj data gradient", false, true, n, d, d, a, d, weight, d, bf16(out, d), false);
  product("fc data gradient", false, true, n, d, f, wide, f, weight, f, bf16(out, d), false);
  product("mlp proj data gradient", false, true, n, f, d, a, d, weight, d, bf16(out, f), false);
  const double wide_flops = 2.0 * static_cast<double>(n) * static_cast<double>(d) * static_cast<double>(f);
  b.time("(fc with bias and GELU)", 0, "TFLOP/s", wide_flops, [&] {
    k.gemm_gelu({false, false, n, f, d, {a, Num::kBf16, d}, {weight, Num::kBf16, f}, bf16(wide, f), false},
                {n, f, bf16(wide, f), vector, bf16(out, f)});
  });
  b.time("(mlp proj data with GELU)", 0, "TFLOP/s", wide_flops, [&] {
    k.gemm_gelu_backward({false, true, n, f, d, {a, Num::kBf16, d}, {weight, Num::kBf16, d}, bf16(out, f), false},
                         {n, f, bf16(wide, f), vector, bf16(out, f), sums, false});
  });
  const Matrix gradient{grad, Num::kFloat, f};
  product("qkv weight gradient", true, false, d, 3 * d, n, a, d, qkv, 3 * d, {grad, Num::kFloat, 3 * d}, false);
  product("proj weight gradient", true, false, d, d, n, a, d, out, d, {grad, Num::kFloat, d}, false);
  product("fc weight gradient", true, false, d, f, n, a, d, wide, f, gradient, false);
  product("mlp proj weight gradient", true, false, f, d, n, wide, f, a, d, {grad, Num::kFloat, d}, false);

  const Dropout dropout = make_dropout({1, 2, 3}, 0.1);
  Attention attention{segments.data(), samples, heads,   d / heads, bf16(qkv, 3 * d), vector, bf16(a, d),
                      log_sum,         n,       dropout, 1};
  const double flops = 2 * squares * static_cast<double>(d);
  b.time("attention", layers, "TFLOP/s", flops, [&] { k.attention(attention); });
  b.time("attention backward", layers, "TFLOP/s", 2.5 * flops, [&] {
    k.attention_backward({attention, bf16(wide, d), bf16(d_qkv, 3 * d)});
  });
  attention.dropout = {};
  b.time("(attention, no dropout)", 0, "TFLOP/s", flops, [&] { k.attention(attention); });
  b.time("(backward, no dropout)", 0, "TFLOP/s", 2.5 * flops, [&] {
    k.attention_backward({attention, bf16(wide, d), bf16(d_qkv, 3 * d)});
  });

  const DropoutPlace place{dropout, 3, b.put(names)};
  b.time("dropout residual LayerNorm", 2 * layers + 1, "GB/s", 12 * nd, [&] {
    k.drop_residual_ln({n, d, x, bf16(out, d), vector, place, y, vector, vector, bf16(a, d), mean, rstd});
  });
  b.time("its backward", 2 * layers + 1, "GB/s", 16 * nd, [&] {
    k.ln_backward_drop(
        {n, d, bf16(out, d), x, mean, rstd, vector, dx, sums, sums + d, bf16(out, d), place, sums + 2 * d, false});
  });
  b.time("bias GELU", layers, "GB/s", 16 * nd, [&] { k.bias_gelu({n, f, bf16(wide, f), vector, bf16(out, f)}); });
  b.time("its backward", layers, "GB/s", 24 * nd, [&] {
    k.bias_gelu_backward({n, f, bf16(wide, f), vector, bf16(out, f), sums, false});
  });
  b.time("column sums of qkv", layers, "GB/s", 6 * nd, [&] {
    k.column_sum({n, 3 * d, bf16(d_qkv, 3 * d), sums, false});
  });

  const std::int64_t rows = std::min<std::int64_t>(8192, m), classes = 24064;
  void* logits = b.numbers(rows * classes);
  void* head = b.numbers(classes * d, Num::kBf16, 0.05f);
  float *head_grad = b.floats(kTextRows * d), *class_bias = b.floats(kTextRows), *loss = b.floats(rows);
  const std::int32_t* targets_there = b.put(targets);
  auto* rank = b.put(std::vector<std::int32_t>(targets.size()));
  const auto pieces = (m + rows - 1) / rows;
  const double head_flops = 2.0 * static_cast<double>(rows) * static_cast<double>(d) * kMelCodes;
  b.time("mel logits", pieces, "TFLOP/s", head_flops, [&] {
    k.gemm({false, true, rows, 8256, d, {a, Num::kBf16, d}, {head, Num::kBf16, d}, bf16(logits, 8256), false});
  });
  b.time("cross entropy", pieces, "GB/s", 6.0 * static_cast<double>(rows) * kMelCodes, [&] {
    k.cross_entropy({rows, kMelCodes, bf16(logits, 8256), class_bias, targets_there, true, 1e-4f, loss, rank});
  });
  b.time("mel head weight gradient", pieces, "TFLOP/s", head_flops, [&] {
    k.gemm({true,
            false,
            kMelCodes,
            d,
            rows,
            {logits, Num::kBf16, 8256},
            {a, Num::kBf16, d},
            {head_grad, Num::kFloat, d},
            true});
  });
  b.time("mel head data gradient", pieces, "TFLOP/s", head_flops, [&] {
    k.gemm({false, false, rows, d, 8256, {logits, Num::kBf16, 8256}, {head, Num::kBf16, d}, bf16(out, d), false});
  });
  b.time("column sums of logits", pieces, "GB/s", 2.0 * static_cast<double>(rows) * kMelCodes, [&] {
    k.column_sum({rows, kMelCodes, bf16(logits, 8256), class_bias, false});
  });
  b.time("text logits", 1, "TFLOP/s", 2.0 * static_cast<double>(text_rows) * static_cast<double>(d) * kTextRows, [&] {
    k.gemm(
        {false, true, text_rows, classes, d, {a, Num::kBf16, d}, {head, Num::kBf16, d}, bf16(logits, classes), false});
  });
  b.time("text head weight gradient", 1, "TFLOP/s",
         2.0 * static_cast<double>(text_rows) * static_cast<double>(d) * kTextRows, [&] {
           k.gemm({true,
                   false,
                   kTextRows,
                   d,
                   text_rows,
                   {logits, Num::kBf16, classes},
                   {a, Num::kBf16, d},
                   {head_grad, Num::kFloat, d},
                   false});
         });
  b.time("text head data gradient", 1, "TFLOP/s",
         2.0 * static_cast<double>(text_rows) * static_cast<double>(d) * kTextRows, [&] {
           k.gemm({false,
                   false,
                   text_rows,
                   d,
                   classes,
                   {logits, Num::kBf16, classes},
                   {head, Num::kBf16, d},
                   bf16(out, d),
                   false});
         });

  const std::int32_t* rows_there = b.put(scored);
  const DoubleLnGather final_norms{
      m, d, rows_there, x, vector, vector, vector, vector, y, bf16(out, d), b.floats(4 * m)};
  b.time("final norms", 1, "", 0, [&] { k.double_ln_gather(final_norms); });
  b.time("their backward", 1, "", 0, [&] {
    k.double_ln_gather_backward({final_norms, n, bf16(a, d), dx, sums, sums + d, sums + 2 * d, sums + 3 * d, false});
  });
  EmbedScatter scatter;
  scatter.rows = n;
  scatter.width = d;
  scatter.source = b.put(source);
  scatter.grad = dx;
  for (int kind = 1; kind < 4; ++kind) scatter.table[kind] = head_grad;
  for (int kind = 2; kind < 4; ++kind) scatter.position[kind] = head_grad + 8000 * d;
  b.time("embedding gradients", 1, "", 0, [&] { k.embed_scatter(scatter); });

  const std::int64_t parameters = layers * 12 * d * d + 2 * d * (kTextRows + kMelCodes), piece = d * f;
  std::vector<GradientSpan> spans;
  std::vector<AdamWTensor> tensors;
  for (std::int64_t at = 0; at < parameters; at += piece) {
    AdamWTensor t;
    t.parameter = b.floats(piece);
    t.exp_avg = b.floats(piece);
    t.exp_avg_sq = b.floats(piece, 0.f);
    t.gradient = b.floats(piece);
    t.ema = b.floats(piece);
    t.copy = static_cast<Bf16*>(b.numbers(piece));
    t.width = piece;
    tensors.push_back(t);
    spans.push_back({t.gradient, 1, piece, nullptr});
  }
  const auto count = static_cast<std::int64_t>(tensors.size());
  const double size = static_cast<double>(count * piece);
  b.time("gradient norm", 1, "GB/s", 4 * size, [&] { k.sum_of_squares(spans.data(), count); });
  b.time("AdamW, EMA, bf16 copy", 1, "GB/s", 38 * size, [&] {
    k.adamw({0.9, 0.999, 1e-8, 1, 1.f, 0.999}, tensors.data(), count);
  });
  std::printf("sum of all %8.2f ms\n", b.total);
  return 0;
}

}  // namespace
}  // namespace train_gpt_v2

int main(int argc, char** argv) {
  const auto number = [&](int i, std::int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  if (train_gpt_v2::cuda_device_count() == 0) {
    std::fprintf(stderr, "no GPU here\n");
    return 1;
  }
  return train_gpt_v2::run(number(1, 512), number(2, 12), number(3, 8), number(4, 64));
}
