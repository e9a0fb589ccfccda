// Measures the kernels of the fused step one by one, and the whole step on synthetic data.
//
//   bench_kernels [--threads N] [--isa NAME] [--repeat R] [--clock wall|cpu] [--dim D] [--layers L] [--batch B]
//                 [--json] [PART...]
//   parts: gemm torch_gemm attention elementwise loss optimizer dropout step (default: all but torch_gemm)
//
// Each line: what, best and median milliseconds, and the rate it means (GFLOP/s or GB/s). The machine's noise is the
// distance between the two; compare variants only within one run. --json: one object per line instead.

#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/InferenceMode.h>

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "train_gpt_v2/kernels/kernels.h"
#include "train_gpt_v2/model/fused_gpt.h"

namespace train_gpt_v2 {
namespace {

struct Settings {
  int threads = 2, repeat = 7;
  Isa isa = best_isa();
  std::int64_t dim = 512, layers = 12, batch = 4;
  std::set<std::string> parts;
};

bool cpu_clock = false;
bool as_json = false;

// Wall time, or the processor time of this process: with one thread the latter hardly feels a busy machine.
double seconds() {
  if (cpu_clock) {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// `work` in units of 1e9 (operations or bytes) per call.
void measure(const Settings& s, const std::string& what, double work, const char* unit,
             const std::function<void()>& call) {
  call();
  std::vector<double> times;
  for (int i = 0; i < s.repeat; ++i) {
    const double start = seconds();
    call();
    times.push_back(seconds() - start);
  }
  std::sort(times.begin(), times.end());
  const double best = times.front(), median = times[times.size() / 2];
  if (as_json) {
    std::printf(R"({"group":"kernels","name":"%s","value":%.6g,"unit":"ms","rate":%.6g,"rate_unit":"%s"})"
                "\n",
                what.c_str(), median * 1e3, work / median, unit);
  } else {
    std::printf("%-58s %9.3f %9.3f ms  %8.1f %s\n", what.c_str(), best * 1e3, median * 1e3, work / median, unit);
  }
  std::fflush(stdout);
}

// Memory of one benchmark, filled with small numbers.
class Store {
 public:
  explicit Store(Kernels& kernels) : kernels_(kernels) {}
  ~Store() {
    for (const auto& [memory, bytes] : pieces_) kernels_.release(memory, bytes);
  }
  float* floats(std::int64_t count, double scale = 1) {
    float* p = static_cast<float*>(take(static_cast<std::size_t>(count) * sizeof(float)));
    for (std::int64_t i = 0; i < count; ++i) p[i] = value(i, scale);
    return p;
  }
  Bf16* halves(std::int64_t count, double scale = 1) {
    Bf16* p = static_cast<Bf16*>(take(static_cast<std::size_t>(count) * sizeof(Bf16)));
    for (std::int64_t i = 0; i < count; ++i) p[i] = to_bf16(value(i, scale));
    return p;
  }
  Matrix matrix(Num type, std::int64_t rows, std::int64_t columns, double scale = 1) {
    if (type == Num::kBf16) return {halves(rows * columns, scale), type, columns};
    return {floats(rows * columns, scale), type, columns};
  }

 private:
  void* take(std::size_t bytes) {
    pieces_.emplace_back(kernels_.allocate(bytes), bytes);
    return pieces_.back().first;
  }
  static float value(std::int64_t i, double scale) {
    const std::uint32_t h = static_cast<std::uint32_t>(i) * 2654435761u;
    return static_cast<float>(scale * (h / 2147483648.0 - 1));
  }
  Kernels& kernels_;
  std::vector<std::pair<void*, std::size_t>> pieces_;
};

const char* type_name(Num type) {
  return type == Num::kBf16 ? "bf16" : "fp32";
}

at::Tensor torch_view(const ConstMatrix& m, bool transposed, std::int64_t rows, std::int64_t columns) {
  const auto type = m.type == Num::kBf16 ? at::kBFloat16 : at::kFloat;
  const std::int64_t across = transposed ? 1 : m.stride, along = transposed ? m.stride : 1;
  return at::from_blob(const_cast<void*>(m.data), {rows, columns}, {across, along}, type);
}

void bench_gemm(const Settings& s, Kernels& k, bool with_torch) {
  const std::int64_t n = 1500, d = s.dim;
  struct Shape {
    const char* what;
    bool ta, tb;
    std::int64_t m, n, k;
    bool float_c;
  };
  const Shape shapes[] = {{"forward qkv NN", false, false, n, 3 * d, d, false},
                          {"forward fc NN", false, false, n, 4 * d, d, false},
                          {"forward proj NN", false, false, n, d, 4 * d, false},
                          {"data gradient fc NT", false, true, n, d, 4 * d, false},
                          {"weight gradient fc TN", true, false, d, 4 * d, n, true},
                          {"weight gradient proj TN", true, false, 4 * d, d, n, true},
                          {"mel logits NT", false, true, 512, 8194, d, false},
                          {"mel logits data gradient NN", false, false, 512, d, 8194, false},
                          {"mel logits weight gradient TN", true, false, 8194, d, 512, true}};
  for (const Num type : {Num::kFloat, Num::kBf16}) {
    for (const Shape& x : shapes) {
      Store store(k);
      const Matrix a = x.ta ? store.matrix(type, x.k, x.m) : store.matrix(type, x.m, x.k);
      const Matrix b = x.tb ? store.matrix(type, x.n, x.k) : store.matrix(type, x.k, x.n);
      const Matrix c = store.matrix(x.float_c ? Num::kFloat : type, x.m, x.n);
      const double work = 2e-9 * static_cast<double>(x.m * x.n * x.k);
      const std::string what = std::string("gemm ") + type_name(type) + " " + x.what;
      measure(s, what, work, "GF/s", [&] { k.gemm({x.ta, x.tb, x.m, x.n, x.k, a, b, c, false}); });
      if (!with_torch) continue;
      const c10::InferenceMode guard;
      const at::Tensor left = torch_view(a, x.ta, x.m, x.k), right = torch_view(b, x.tb, x.k, x.n);
      at::Tensor out = at::mm(left, right);
      measure(s, what + " (at::mm)", work, "GF/s", [&] { at::mm_out(out, left, right); });
    }
  }
}

void bench_attention(const Settings& s, Kernels& k) {
  const std::int64_t d = s.dim, heads = std::max<std::int64_t>(1, d / 64);
  for (const std::vector<std::int32_t>& lengths :
       {std::vector<std::int32_t>{100, 100, 100, 100}, {372, 415, 243, 340}, {850, 850, 850, 850}}) {
    std::vector<Segment> segments;
    std::int32_t rows = 0;
    double pairs = 0;
    for (const std::int32_t n : lengths) {
      segments.push_back({rows, n});
      rows += n;
      pairs += 0.5 * n * n;
    }
    for (const Num type : {Num::kFloat, Num::kBf16}) {
      for (const double rate : {0.0, 0.1}) {
        Store store(k);
        Attention a;
        a.segments = segments.data();
        a.count = 4;
        a.heads = heads;
        a.head_dim = d / heads;
        a.qkv = store.matrix(type, rows, 3 * d);
        a.bias = store.floats(3 * d, 0.1);
        a.out = store.matrix(type, rows, d);
        a.log_sum = store.floats(heads * rows);
        a.log_sum_stride = rows;
        a.dropout = make_dropout({1, 2, 3}, rate);
        const AttentionBackward back{a, store.matrix(type, rows, d), store.matrix(type, rows, 3 * d)};
        char what[96];
        std::snprintf(what, sizeof what, "attention %s fwd+bwd, 4 segments of %d.., dropout %.1f", type_name(type),
                      lengths[0], rate);
        measure(s, what, 14e-9 * pairs * static_cast<double>(d), "GF/s", [&] {
          k.attention(a);
          k.attention_backward(back);
        });
      }
    }
  }
}

void bench_elementwise(const Settings& s, Kernels& k) {
  const std::int64_t n = 1500, d = s.dim;
  std::vector<std::uint32_t> ids;
  for (std::int64_t i = 0; i < n; ++i) ids.push_back(dropout_row(0, static_cast<std::uint32_t>(i)));
  for (const Num type : {Num::kFloat, Num::kBf16}) {
    Store store(k);
    const double act = type == Num::kBf16 ? 2 : 4, cells = 1e-9 * static_cast<double>(n * d);
    const Matrix narrow = store.matrix(type, n, d), out = store.matrix(type, n, d), wide = store.matrix(type, n, 4 * d),
                 wide_out = store.matrix(type, n, 4 * d);
    float *x = store.floats(n * d), *y = store.floats(n * d), *mean = store.floats(n), *rstd = store.floats(n);
    float *bias = store.floats(4 * d), *sums = store.floats(12 * d);
    const DropoutPlace place{make_dropout({1, 2, 3}, 0.1), 5, ids.data()};
    const std::string t = std::string(" ") + type_name(type);
    measure(s, "dropout + residual + LayerNorm" + t, cells * (8 + 2 * act), "GB/s", [&] {
      k.drop_residual_ln({n, d, x, narrow, bias, place, y, bias, bias, out, mean, rstd});
    });
    measure(s, "LayerNorm backward + dropout + bias sum" + t, cells * (12 + 2 * act), "GB/s", [&] {
      k.ln_backward_drop({n, d, narrow, x, mean, rstd, bias, y, sums, sums + d, out, place, sums + 2 * d, false});
    });
    measure(s, "bias + GELU" + t, cells * 8 * act, "GB/s", [&] { k.bias_gelu({n, 4 * d, wide, bias, wide_out}); });
    measure(s, "GELU backward + bias sum" + t, cells * 12 * act, "GB/s", [&] {
      k.bias_gelu_backward({n, 4 * d, wide, bias, wide_out, sums, false});
    });
    measure(s, "column sum of [N, 3D]" + t, cells * 3 * act, "GB/s", [&] {
      k.column_sum({n, 3 * d, wide, sums, false});
    });
  }
}

void bench_loss(const Settings& s, Kernels& k) {
  for (const Num type : {Num::kFloat, Num::kBf16}) {
    for (const auto& [rows, classes] : {std::pair<std::int64_t, std::int64_t>{512, 8194}, {110, 24001}}) {
      Store store(k);
      const Matrix logits = store.matrix(type, rows, (classes + 63) / 64 * 64, 4);
      float *bias = store.floats(classes), *loss = store.floats(rows), *sums = store.floats(classes);
      std::vector<std::int32_t> targets(static_cast<std::size_t>(rows), 17), rank(targets);
      const double bytes = 1e-9 * static_cast<double>(rows * classes) * (type == Num::kBf16 ? 2 : 4);
      measure(s,
              std::string("cross entropy + gradient + bias sum ") + type_name(type) + " " + std::to_string(rows) +
                  " x " + std::to_string(classes),
              4 * bytes, "GB/s", [&] {
                k.cross_entropy({rows, classes, logits, bias, targets.data(), true, 0.01f, loss, rank.data()});
                k.column_sum({rows, classes, logits, sums, false});
              });
    }
  }
}

void bench_optimizer(const Settings& s, Kernels& k) {
  const std::int64_t n = 72070595;
  Store store(k);
  AdamWTensor t;
  t.parameter = store.floats(n);
  float* gradient = store.floats(n, 1e-3);
  t.gradient = gradient;
  t.exp_avg = store.floats(n, 1e-3);
  t.exp_avg_sq = store.floats(n, 0);
  t.width = n;
  t.learning_rate = 1e-4;
  t.weight_decay = 0.01;
  AdamWStep step;
  step.step = 10;
  const GradientSpan span{gradient, 1, n, nullptr};
  measure(s, "gradient norm, 72 M", 4e-9 * n, "GB/s", [&] { k.sum_of_squares(&span, 1); });
  measure(s, "AdamW, 72 M", 28e-9 * n, "GB/s", [&] { k.adamw(step, &t, 1); });
  t.ema = store.floats(n);
  step.ema_decay = 0.999;
  t.copy = store.halves(n);
  measure(s, "AdamW + EMA + bf16 copy, 72 M", 38e-9 * n, "GB/s", [&] { k.adamw(step, &t, 1); });
}

void bench_dropout(const Settings& s) {
  const std::int64_t rows = 1500, columns = 512;
  std::vector<std::uint32_t> ids;
  for (std::int64_t i = 0; i < rows; ++i) ids.push_back(dropout_row(0, static_cast<std::uint32_t>(i)));
  std::vector<float> out(static_cast<std::size_t>(rows * columns));
  const Dropout d = make_dropout({1, 2, 3}, 0.1);
  measure(s, "768 k keep decisions as floats (1 thread)", 1e-9 * static_cast<double>(rows * columns), "G/s",
          [&] { fill_dropout_scale(d, 3, ids.data(), rows, columns, out.data()); });
}

// The step on four samples of about 315 packed tokens (30 text ids, 248 codes), dropout 0.1, with norm, clip and AdamW.
void bench_step(const Settings& s, bool bf16) {
  ModelOptions options;
  options.model_dim = s.dim;
  options.layers = s.layers;
  options.heads = std::max<std::int64_t>(1, s.dim / 64);
  options.number_text_tokens = 24000;
  FusedOptions fused;
  fused.bf16 = bf16;
  fused.threads = s.threads;
  fused.isa = s.isa;
  fused.max_tokens = 512 * s.batch;
  const auto owner = make_cpu_kernels(s.threads, s.isa);
  Store store(*owner);
  FusedParameters parameters;
  std::vector<AdamWTensor> tensors;
  std::vector<GradientSpan> spans;
  for (const auto& [key, numel] : FusedGpt::required_parameters(options)) {
    const bool norm = key.find("ln_") != std::string::npos || key.find("norm") != std::string::npos;
    AdamWTensor t;
    t.parameter = store.floats(numel, 0.03);
    if (norm && key.ends_with(".weight")) std::fill(t.parameter, t.parameter + numel, 1.f);
    float* gradient = store.floats(numel, 0);
    t.gradient = gradient;
    t.exp_avg = store.floats(numel, 0);
    t.exp_avg_sq = store.floats(numel, 0);
    t.width = numel;
    t.learning_rate = 2e-5;
    t.weight_decay = 0.01;
    parameters[key] = {t.parameter, gradient, numel};
    tensors.push_back(t);
    spans.push_back({gradient, 1, numel, nullptr});
  }
  FusedGpt engine(options, parameters, fused);
  std::size_t i = 0;
  for (const auto& [key, numel] : FusedGpt::required_parameters(options)) {
    if (const std::uint8_t* flags = engine.touched_rows(key)) {
      tensors[i].row_flags = spans[i].row_flags = flags;
      tensors[i].width = spans[i].width = s.dim;
      tensors[i].rows = spans[i].rows = numel / s.dim;
    }
    tensors[i].copy = engine.bf16_copy(key);
    ++i;
  }
  Batch batch;
  const std::int64_t text_lengths[] = {24, 41, 18, 37}, code_lengths[] = {230, 310, 170, 282};
  for (std::int64_t b = 0; b < s.batch; ++b) {
    batch.ids.push_back("bench");
    for (std::int64_t t = 0; t < text_lengths[b % 4]; ++t)
      batch.text.push_back(static_cast<std::int32_t>(2 + (t * 7919 + b) % 23000));
    for (std::int64_t t = 0; t < code_lengths[b % 4]; ++t)
      batch.codes.push_back(static_cast<std::int32_t>((t * 104729 + b) % 8192));
    batch.text_begin.push_back(static_cast<std::int64_t>(batch.text.size()));
    batch.code_begin.push_back(static_cast<std::int64_t>(batch.codes.size()));
  }
  batch.condition.assign(static_cast<std::size_t>(s.batch * 32 * s.dim), 0.1f);
  batch.emo_vec.assign(static_cast<std::size_t>(s.batch * s.dim), 0.1f);
  const double scored = static_cast<double>(batch.text_tokens() + batch.mel_tokens());
  AdamWStep step;
  step.step = 0;
  double engine_time = 1e9, optimizer_time = 1e9;
  measure(s, std::string("whole step ") + type_name(bf16 ? Num::kBf16 : Num::kFloat) + ", scored tokens", scored,
          "tokens/s", [&] {
            const double start = seconds();
            engine.begin_window();
            engine.forward_backward(batch, {1, static_cast<std::uint32_t>(step.step), 0},
                                    0.2 / static_cast<double>(batch.text_tokens()),
                                    0.8 / static_cast<double>(batch.mel_tokens()));
            const double middle = seconds();
            const double norm =
                std::sqrt(engine.kernels().sum_of_squares(spans.data(), static_cast<std::int64_t>(spans.size())));
            step.step++;
            step.gradient_scale = static_cast<float>(std::min(1.0, 1.0 / (norm + 1e-6)));
            engine.kernels().adamw(step, tensors.data(), static_cast<std::int64_t>(tensors.size()));
            engine_time = std::min(engine_time, middle - start);
            optimizer_time = std::min(optimizer_time, seconds() - middle);
          });
  if (as_json) return;
  std::printf("%-58s %9.3f ms\n", "  forward and backward, best", engine_time * 1e3);
  std::printf("%-58s %9.3f ms\n", "  norm, clip and AdamW, best", optimizer_time * 1e3);
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--json") {
      as_json = true;
      continue;
    }
    if (option.rfind("--", 0) != 0) {
      s.parts.insert(option);
      continue;
    }
    if (++i >= argc) break;
    if (option == "--threads") s.threads = std::atoi(argv[i]);
    if (option == "--repeat") s.repeat = std::max(1, std::atoi(argv[i]));
    if (option == "--clock") cpu_clock = std::strcmp(argv[i], "cpu") == 0;
    if (option == "--dim") s.dim = std::atol(argv[i]);
    if (option == "--layers") s.layers = std::atol(argv[i]);
    if (option == "--batch") s.batch = std::atol(argv[i]);
    if (option == "--isa") {
      for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
        if (std::strcmp(argv[i], isa_name(isa)) == 0) s.isa = isa;
      }
    }
  }
  if (s.parts.empty()) s.parts = {"gemm", "attention", "elementwise", "loss", "optimizer", "dropout", "step"};
  return s;
}

int run(int argc, char** argv) {
  const Settings s = parse(argc, argv);
  at::set_num_threads(s.threads);
  const auto kernels = make_cpu_kernels(s.threads, s.isa);
  if (!as_json) std::printf("%s\n%-58s %9s %9s\n", kernels->name(), "", "best", "median");
  if (s.parts.count("gemm")) bench_gemm(s, *kernels, false);
  if (s.parts.count("torch_gemm")) bench_gemm(s, *kernels, true);
  if (s.parts.count("attention")) bench_attention(s, *kernels);
  if (s.parts.count("elementwise")) bench_elementwise(s, *kernels);
  if (s.parts.count("loss")) bench_loss(s, *kernels);
  if (s.parts.count("optimizer")) bench_optimizer(s, *kernels);
  if (s.parts.count("dropout")) bench_dropout(s);
  if (s.parts.count("step")) {
    bench_step(s, false);
    bench_step(s, true);
  }
  return 0;
}

}  // namespace
}  // namespace train_gpt_v2

int main(int argc, char** argv) {
  return train_gpt_v2::run(argc, argv);
}
