// Every CUDA kernel against the CPU's on the same numbers and the same masks; skipped without a GPU.
#ifdef TGV2_OWN_CUDA_KERNELS
#include "train_gpt_v2/kernels/cuda.h"

#include <utility>

#include "unit/kernels/reference.h"

namespace train_gpt_v2::testing {
namespace {

// Host numbers and their copy on the device. Matrices of bf16 hold what the float values round to.
class Twin {
 public:
  Twin(Kernels& cuda, std::int64_t rows, std::int64_t columns, Num type, unsigned seed, double scale = 1)
      : cuda_(cuda), rows_(rows), columns_(columns), stride_((columns + 7) / 8 * 8 + 8), type_(type) {
    values_ = random_floats(static_cast<std::size_t>(rows * stride_), seed, scale);
    for (const float v : values_) halves_.push_back(to_bf16(v));
    for (std::size_t i = 0; i < values_.size() && type == Num::kBf16; ++i) values_[i] = to_float(halves_[i]);
    memory_ = cuda_.allocate(bytes());
    cuda_.upload(memory_, host(), bytes());
  }
  // A vector or a matrix of whole rows, float.
  static Twin plain(Kernels& cuda, std::int64_t count, unsigned seed, double scale = 1) {
    Twin twin(cuda, 1, count, Num::kFloat, seed, scale);
    return twin;
  }
  ~Twin() { cuda_.release(memory_, bytes()); }
  Twin(const Twin&) = delete;
  Twin(Twin&& other) noexcept
      : cuda_(other.cuda_),
        rows_(other.rows_),
        columns_(other.columns_),
        stride_(other.stride_),
        type_(other.type_),
        values_(std::move(other.values_)),
        halves_(std::move(other.halves_)),
        memory_(std::exchange(other.memory_, nullptr)) {}

  Matrix here() { return {host(), type_, stride_}; }
  Matrix there() { return {memory_, type_, stride_}; }
  float* here_floats() { return values_.data(); }
  float* there_floats() { return static_cast<float*>(memory_); }
  std::int64_t stride() const { return stride_; }

  // |device - host| <= absolute + relative |host|, for every number that both kernels wrote.
  void expect_close(double absolute, double relative, const std::string& what) {
    const auto [mine, want] = both();
    for (std::int64_t i = 0; i < rows_; ++i) {
      for (std::int64_t j = 0; j < columns_; ++j) {
        const auto at = static_cast<std::size_t>(i * stride_ + j);
        testing::expect_close(mine[at], want[at], absolute, relative, what + cell(i, j));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
  // |device - host| <= limit |host| as a whole, columns [first, last).
  void expect_near_as_a_whole(double limit, const std::string& what, std::int64_t first = 0, std::int64_t last = -1) {
    const auto [mine, want] = both();
    double difference = 0, size = 0;
    for (std::int64_t i = 0; i < rows_; ++i) {
      for (std::int64_t j = first; j < (last < 0 ? columns_ : last); ++j) {
        const auto at = static_cast<std::size_t>(i * stride_ + j);
        difference += std::pow(mine[at] - want[at], 2);
        size += std::pow(want[at], 2);
      }
    }
    EXPECT_GT(size, 0) << what;
    EXPECT_LE(std::sqrt(difference), limit * std::sqrt(size)) << what;  // false for NaN
  }
  std::vector<double> device_numbers() { return both().first; }

 private:
  std::size_t bytes() const { return values_.size() * (type_ == Num::kFloat ? sizeof(float) : sizeof(Bf16)); }
  void* host() { return type_ == Num::kFloat ? static_cast<void*>(values_.data()) : halves_.data(); }
  std::pair<std::vector<double>, std::vector<double>> both() {
    std::vector<float> floats(values_.size());
    std::vector<Bf16> halves(values_.size());
    cuda_.download(type_ == Num::kFloat ? static_cast<void*>(floats.data()) : halves.data(), memory_, bytes());
    std::vector<double> mine, want;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      mine.push_back(type_ == Num::kFloat ? floats[i] : to_float(halves[i]));
      want.push_back(type_ == Num::kFloat ? values_[i] : to_float(halves_[i]));
    }
    return {mine, want};
  }

  Kernels& cuda_;
  std::int64_t rows_, columns_, stride_;
  Num type_;
  std::vector<float> values_;
  std::vector<Bf16> halves_;
  void* memory_;
};

class CudaKernels : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU here";
    cpu = make_cpu_kernels(2);
    cuda = make_cuda_kernels(0, nullptr, false);
  }
  void TearDown() override {
    for (const auto& [memory, bytes] : owned_) cuda->release(memory, bytes);
  }
  template <typename T>
  T* put(const std::vector<T>& values) {
    const std::size_t bytes = values.size() * sizeof(T);
    void* memory = cuda->allocate(bytes);
    owned_.push_back({memory, bytes});
    cuda->upload(memory, values.data(), bytes);
    return static_cast<T*>(memory);
  }
  template <typename T>
  std::vector<T> get(const T* memory, std::int64_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    cuda->download(values.data(), memory, values.size() * sizeof(T));
    return values;
  }
  Twin matrix(std::int64_t rows, std::int64_t columns, Num type, unsigned seed, double scale = 1) {
    return Twin(*cuda, rows, columns, type, seed, scale);
  }
  Twin floats(std::int64_t count, unsigned seed, double scale = 1) { return Twin::plain(*cuda, count, seed, scale); }

  std::unique_ptr<Kernels> cpu, cuda;

 private:
  std::vector<std::pair<void*, std::size_t>> owned_;
};

constexpr Num kTypes[] = {Num::kFloat, Num::kBf16};
double ulp(Num type) {
  return type == Num::kFloat ? 3e-6 : 0.0079;
}  // bf16: both may round to either neighbour

std::vector<std::uint32_t> row_names(std::int64_t rows) {
  std::vector<std::uint32_t> names;
  for (std::int64_t r = 0; r < rows; ++r) {
    names.push_back(dropout_row(static_cast<std::uint32_t>(r / 7), static_cast<std::uint32_t>(3 * r % 50)));
  }
  return names;
}

TEST_F(CudaKernels, Products) {
  for (const Num type : kTypes) {
    for (const Num out : kTypes) {
      if (type == Num::kFloat && out == Num::kBf16) continue;
      for (int mode = 0; mode < 8; ++mode) {
        const bool ta = mode & 1, tb = mode & 2, add = mode & 4;
        if (add && out == Num::kBf16) continue;
        const std::int64_t m = 70, n = 130, k = 96;
        Twin a = matrix(ta ? k : m, ta ? m : k, type, 1), b = matrix(tb ? n : k, tb ? k : n, type, 2),
             c = matrix(m, n, out, 3);
        cpu->gemm({ta, tb, m, n, k, a.here(), b.here(), c.here(), add});
        cuda->gemm({ta, tb, m, n, k, a.there(), b.there(), c.there(), add});
        c.expect_close(out == Num::kFloat ? 2e-5 : 0.05, ulp(out), "product");
      }
    }
  }
  Twin a = matrix(8, 8, Num::kFloat, 1), c = matrix(8, 8, Num::kBf16, 2);
  EXPECT_THROW(cuda->gemm({false, false, 8, 8, 8, a.there(), a.there(), c.there(), false}), std::invalid_argument);
}

TEST_F(CudaKernels, DropoutResidualLayerNormAndBackward) {
  const std::int64_t rows = 1100;  // more than there are blocks
  const auto names = row_names(rows);
  const std::uint32_t* names_there = put(names);
  for (const Num type : kTypes) {
    for (const std::int64_t width : {std::int64_t{64}, std::int64_t{200}, std::int64_t{1280}}) {
      for (const double p : {0.0, 0.25}) {
        const Dropout dropout = make_dropout({99, 3, 1}, p);
        Twin residual = floats(rows * width, 1), out_sum = floats(rows * width, 2),
             branch = matrix(rows, width, type, 3), bias = floats(width, 4), gamma = floats(width, 5),
             beta = floats(width, 6), out = matrix(rows, width, type, 7), mean = floats(rows, 8),
             rstd = floats(rows, 9);
        const auto forward = [&](bool there) {
          const auto f = [&](Twin& t) { return there ? t.there_floats() : t.here_floats(); };
          const auto m = [&](Twin& t) { return there ? t.there() : t.here(); };
          (there ? *cuda : *cpu)
              .drop_residual_ln({rows,
                                 width,
                                 f(residual),
                                 m(branch),
                                 f(bias),
                                 {dropout, 5, there ? names_there : names.data()},
                                 f(out_sum),
                                 f(gamma),
                                 f(beta),
                                 m(out),
                                 f(mean),
                                 f(rstd)});
        };
        forward(false);
        forward(true);
        out_sum.expect_close(1e-6, 1e-6, "residual");
        out.expect_close(3e-5, ulp(type), "normalised");
        mean.expect_close(1e-6, 1e-5, "mean");
        rstd.expect_close(1e-6, 1e-5, "rstd");

        Twin d_out = matrix(rows, width, type, 10), d_residual = floats(rows * width, 11),
             d_branch = matrix(rows, width, type, 12), d_gamma = floats(width, 13), d_beta = floats(width, 14),
             d_bias = floats(width, 15);
        const auto backward = [&](bool there, bool norm) {
          const auto f = [&](Twin& t) { return there ? t.there_floats() : t.here_floats(); };
          const auto m = [&](Twin& t) { return there ? t.there() : t.here(); };
          LnBackwardDrop a{rows,       width,     m(d_out),    f(out_sum),
                           f(mean),    f(rstd),   f(gamma),    f(d_residual),
                           f(d_gamma), f(d_beta), m(d_branch), {dropout, 5, there ? names_there : names.data()},
                           f(d_bias),  norm};
          if (!norm) a.d_out = {};
          (there ? *cuda : *cpu).ln_backward_drop(a);
        };
        for (const bool norm : {true, false}) {
          backward(false, norm);
          backward(true, norm);
          d_residual.expect_close(1e-5, 1e-5, "d_residual");
          d_branch.expect_close(2e-5, ulp(type), "d_branch");
          for (Twin* sum : {&d_gamma, &d_beta, &d_bias}) sum->expect_close(3e-4, 3e-5, "column sum");
        }
      }
    }
  }
}

TEST_F(CudaKernels, GeluAndColumnSums) {
  const std::int64_t rows = 333, width = 2048 + 8;
  for (const Num type : kTypes) {
    Twin in = matrix(rows, width, type, 1, 6), bias = floats(width, 2), out = matrix(rows, width, type, 3),
         grad = matrix(rows, width, type, 4), d_bias = floats(width, 5), sum = floats(width - 3, 6);
    cpu->bias_gelu({rows, width, in.here(), bias.here_floats(), out.here()});
    cuda->bias_gelu({rows, width, in.there(), bias.there_floats(), out.there()});
    out.expect_close(2e-6, ulp(type), "gelu");
    cpu->bias_gelu_backward({rows, width, in.here(), bias.here_floats(), grad.here(), d_bias.here_floats(), true});
    cuda->bias_gelu_backward({rows, width, in.there(), bias.there_floats(), grad.there(), d_bias.there_floats(), true});
    grad.expect_close(4e-6, ulp(type), "gelu backward");
    d_bias.expect_close(2e-4, 1e-5, "bias of gelu");
    cpu->column_sum({rows, width - 3, in.here(), sum.here_floats(), true});
    cuda->column_sum({rows, width - 3, in.there(), sum.there_floats(), true});
    sum.expect_close(1e-3, 1e-5, "column sum");
  }
}

TEST_F(CudaKernels, ProductsWithGelu) {
  const std::int64_t rows = 150, width = 64, inner = 256;
  for (const Num type : kTypes) {
    Twin a = matrix(rows, width, type, 1, 2), w = matrix(width, inner, type, 2), u = matrix(rows, inner, type, 3),
         bias = floats(inner, 4), out = matrix(rows, inner, type, 5), v = matrix(inner, width, type, 6),
         grad = matrix(rows, inner, type, 7), d_bias = floats(inner, 8);
    const auto run = [&](bool there) {
      const auto m = [&](Twin& t) { return there ? t.there() : t.here(); };
      const auto f = [&](Twin& t) { return there ? t.there_floats() : t.here_floats(); };
      Kernels& kernels = there ? *cuda : *cpu;
      kernels.gemm_gelu({false, false, rows, inner, width, m(a), m(w), m(u), false},
                        {rows, inner, m(u), f(bias), m(out)});
      kernels.gemm_gelu_backward({false, true, rows, inner, width, m(a), m(v), m(grad), false},
                                 {rows, inner, m(u), f(bias), m(grad), f(d_bias), true});
    };
    run(false);
    run(true);
    const double limit = type == Num::kFloat ? 1e-5 : 8e-3;  // the CPU rounds between product and GELU
    out.expect_near_as_a_whole(limit, "gelu");
    grad.expect_near_as_a_whole(limit, "its backward");
    d_bias.expect_near_as_a_whole(limit, "bias");
  }
}

TEST_F(CudaKernels, AttentionAndBackward) {
  const std::vector<Segment> segments{{0, 1}, {1, 63}, {64, 64}, {128, 65}, {193, 200}, {393, 394}, {787, 128}};
  const std::int64_t rows = 915, heads = 3;
  for (const std::int64_t size : {16, 64, 80}) {
    for (const Num type : kTypes) {
      for (const double p : {0.0, 0.1}) {
        const std::int64_t width = heads * size;
        const std::string what =
            "size " + std::to_string(size) + (type == Num::kBf16 ? " bf16" : " float") + (p > 0 ? " dropout " : " ");
        Twin qkv = matrix(rows, 3 * width, type, 1, 2), bias = floats(3 * width, 2), out = matrix(rows, width, type, 3),
             log_sum = floats(heads * rows, 4), d_out = matrix(rows, width, type, 5),
             d_qkv = matrix(rows, 3 * width, type, 6);
        const auto make = [&](bool there) {
          Attention a{segments.data(),
                      static_cast<std::int64_t>(segments.size()),
                      heads,
                      size,
                      there ? qkv.there() : qkv.here(),
                      there ? bias.there_floats() : bias.here_floats(),
                      there ? out.there() : out.here(),
                      there ? log_sum.there_floats() : log_sum.here_floats(),
                      rows,
                      make_dropout({5, 6, 7}, p),
                      2};
          return a;
        };
        cpu->attention(make(false));
        cuda->attention(make(true));
        // bf16: operands and probabilities carry 2^-9 each.
        const double limit = type == Num::kFloat ? 1e-5 : 6e-3;
        out.expect_near_as_a_whole(limit, what + "out");
        cpu->attention_backward({make(false), d_out.here(), d_qkv.here()});
        cuda->attention_backward({make(true), d_out.there(), d_qkv.there()});
        d_qkv.expect_near_as_a_whole(2 * limit, what + "dq", 0, width);
        d_qkv.expect_near_as_a_whole(2 * limit, what + "dk", width, 2 * width);
        d_qkv.expect_near_as_a_whole(2 * limit, what + "dv", 2 * width, 3 * width);
        const std::vector<double> first = d_qkv.device_numbers();
        cuda->attention_backward({make(true), d_out.there(), d_qkv.there()});
        EXPECT_EQ(first, d_qkv.device_numbers()) << what << "repeated";
      }
    }
  }
}

TEST_F(CudaKernels, DoubleLayerNorm) {
  const std::int64_t total = 900, count = 700, width = 512;
  std::vector<std::int32_t> rows(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) rows[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * 7 % total);
  const std::int32_t* rows_there = put(rows);
  for (const Num type : kTypes) {
    Twin x = floats(total * width, 1), g1 = floats(width, 2), b1 = floats(width, 3), g2 = floats(width, 4),
         b2 = floats(width, 5), y = floats(count * width, 6), out = matrix(count, width, type, 7),
         statistics = floats(count * 4, 8), d_out = matrix(count, width, type, 9), d_x = floats(total * width, 10),
         dg1 = floats(width, 11), db1 = floats(width, 12), dg2 = floats(width, 13), db2 = floats(width, 14);
    const auto run = [&](bool there) {
      const auto f = [&](Twin& t) { return there ? t.there_floats() : t.here_floats(); };
      Kernels& kernels = there ? *cuda : *cpu;
      const DoubleLnGather a{count, width, there ? rows_there : rows.data(), f(x),         f(g1), f(b1), f(g2),
                             f(b2), f(y),  there ? out.there() : out.here(), f(statistics)};
      kernels.double_ln_gather(a);
      kernels.double_ln_gather_backward(
          {a, total, there ? d_out.there() : d_out.here(), f(d_x), f(dg1), f(db1), f(dg2), f(db2), true});
    };
    run(false);
    run(true);
    y.expect_close(1e-5, 1e-5, "y");
    out.expect_close(5e-5, ulp(type), "out");
    d_x.expect_close(1e-4, 1e-4, "d_x");
    for (Twin* sum : {&dg1, &db1, &dg2, &db2}) sum->expect_close(1e-3, 1e-4, "column sum");
  }
}

TEST_F(CudaKernels, CrossEntropyInPlace) {
  const std::int64_t rows = 19;
  for (const Num type : kTypes) {
    for (const std::int64_t classes : {std::int64_t{5}, std::int64_t{8194}, std::int64_t{24001}}) {
      for (const bool gradient : {false, true}) {
        Twin logits = matrix(rows, classes, type, 1, 4), bias = floats(classes, 2), loss = floats(rows, 3);
        std::vector<std::int32_t> targets, ranks(static_cast<std::size_t>(rows));
        for (std::int64_t r = 0; r < rows; ++r)
          targets.push_back(static_cast<std::int32_t>((r * r * 97 + 4) % classes));
        std::int32_t* ranks_there = put(ranks);
        const std::int32_t* targets_there = put(targets);
        cpu->cross_entropy({rows, classes, logits.here(), bias.here_floats(), targets.data(), gradient, 0.3f,
                            loss.here_floats(), ranks.data()});
        cuda->cross_entropy({rows, classes, logits.there(), bias.there_floats(), targets_there, gradient, 0.3f,
                             loss.there_floats(), ranks_there});
        loss.expect_close(3e-6, 3e-6, "loss");
        EXPECT_EQ(get(ranks_there, rows), ranks);
        logits.expect_close(1e-9, type == Num::kFloat ? 1e-5 : ulp(type), "logits");
      }
    }
  }
}

TEST_F(CudaKernels, EmbeddingRowsAndTheirGradients) {
  const std::int64_t rows = 2500, width = 520;
  std::vector<EmbedRow> source;
  for (std::int32_t r = 0; r < rows; ++r) source.push_back({r % 4, r * 31 % (r % 3 ? 40 : 7), r * 17 % 23});
  const EmbedRow* source_there = put(source);
  std::vector<Twin> tables, positions;
  for (unsigned kind = 0; kind < 4; ++kind) {
    tables.push_back(floats(40 * width, kind));
    positions.push_back(floats(23 * width, 10 + kind));
  }
  Twin out = floats(rows * width, 20), grad = floats(rows * width, 21);
  const auto run = [&](bool there) {
    const auto f = [&](Twin& t) { return there ? t.there_floats() : t.here_floats(); };
    EmbedPack pack;
    EmbedScatter scatter;
    pack.rows = scatter.rows = rows;
    pack.width = scatter.width = width;
    pack.source = scatter.source = there ? source_there : source.data();
    for (std::size_t kind = 0; kind < 4; ++kind) {
      pack.table[kind] = f(tables[kind]);
      if (kind != 1) pack.position[kind] = f(positions[kind]);
      if (kind != 2) scatter.table[kind] = f(tables[kind]);
      if (kind != 1) scatter.position[kind] = f(positions[kind]);
    }
    pack.out = f(out);
    scatter.grad = f(grad);
    (there ? *cuda : *cpu).embed_pack(pack);
    (there ? *cuda : *cpu).embed_scatter(scatter);
  };
  run(false);
  run(true);
  out.expect_close(0, 0, "packed");
  // The same order of additions: the same bits.
  for (Twin& table : tables) table.expect_close(0, 0, "table");
  for (Twin& position : positions) position.expect_close(0, 0, "position");
}

TEST_F(CudaKernels, NormOptimizerAndConversion) {
  const std::vector<std::int64_t> sizes{1, 4096, 65536 * 2 + 5, 300};
  std::vector<Twin> p, m, v, g, e;
  unsigned seed = 0;
  for (const std::int64_t size : sizes) {
    for (std::vector<Twin>* list : {&p, &m, &v, &g, &e}) list->push_back(floats(size, ++seed));
  }
  std::vector<Bf16> copy(static_cast<std::size_t>(sizes[2]));
  Bf16* copy_there = put(copy);
  const auto run = [&](bool there) {
    const auto f = [&](Twin& t, std::int64_t skip = 0) { return (there ? t.there_floats() : t.here_floats()) + skip; };
    Kernels& kernels = there ? *cuda : *cpu;
    std::vector<GradientSpan> spans;
    std::vector<AdamWTensor> tensors;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::int64_t skip = i == 3 ? 3 : 0, size = sizes[i] - skip;  // the last one begins at an odd address
      spans.push_back({f(g[i], skip), 1, size, nullptr});
      AdamWTensor t;
      t.parameter = f(p[i], skip);
      t.exp_avg = f(m[i], skip);
      t.exp_avg_sq = f(v[i], skip);
      t.gradient = i == 1 ? nullptr : f(g[i], skip);
      t.width = size;
      t.ema = i == 0 ? nullptr : f(e[i], skip);
      t.copy = i == 2 ? (there ? copy_there : copy.data()) : nullptr;
      t.learning_rate = 1e-2;
      t.weight_decay = 0.1;
      tensors.push_back(t);
    }
    for (Twin& t : v) {  // second moments are not negative
      for (std::int64_t j = 0; j < t.stride() && !there; ++j) t.here_floats()[j] = std::abs(t.here_floats()[j]);
    }
    if (!there) {
      for (Twin& t : v)
        cuda->upload(t.there_floats(), t.here_floats(), static_cast<std::size_t>(t.stride()) * sizeof(float));
    }
    const double square = kernels.sum_of_squares(spans.data(), 4);
    kernels.adamw({0.9, 0.99, 1e-8, 3, 0.5f, 0.9}, tensors.data(), 4);
    return square;
  };
  const double here = run(false), there = run(true);
  EXPECT_NEAR(there, here, 1e-7 * here);
  for (std::vector<Twin>* list : {&p, &m, &v, &e}) {
    for (Twin& t : *list) t.expect_close(1e-6, 1e-6, "optimizer");
  }
  const std::vector<Bf16> copied = get(copy_there, sizes[2]);
  const std::vector<float> updated = get(p[2].there_floats(), sizes[2]);
  for (std::size_t i = 0; i < copied.size(); ++i) ASSERT_EQ(copied[i].bits, to_bf16(updated[i]).bits) << i;

  cuda->convert(copy_there, p[2].there_floats(), sizes[2] - 2);
  const std::vector<Bf16> converted = get(copy_there, sizes[2]);
  EXPECT_EQ(converted[4].bits, to_bf16(updated[4]).bits);
  EXPECT_EQ(converted[copied.size() - 1].bits, copied.back().bits);
  const std::uint8_t flags[] = {1};
  cuda->zero_rows(p[2].there_floats(), 1, 7, flags);
  EXPECT_EQ(get(p[2].there_floats(), 8)[6], 0.f);
  EXPECT_EQ(get(p[2].there_floats(), 8)[7], updated[7]);
  const GradientSpan flagged{g[0].there_floats(), 1, 1, flags};
  EXPECT_THROW(cuda->sum_of_squares(&flagged, 1), std::invalid_argument);
}

TEST_F(CudaKernels, GoOnAfterTooLittleMemory) {
  EXPECT_THROW(cuda->allocate(std::size_t{1} << 50), std::bad_alloc);
  Twin in = matrix(3, 16, Num::kFloat, 1), bias = floats(16, 2), out = matrix(3, 16, Num::kFloat, 3);
  cpu->bias_gelu({3, 16, in.here(), bias.here_floats(), out.here()});
  cuda->bias_gelu({3, 16, in.there(), bias.there_floats(), out.there()});
  out.expect_close(2e-6, 3e-6, "gelu");
}

TEST_F(CudaKernels, LargeUploadsArriveWhole) {
  const std::vector<float> values = random_floats(std::size_t{12} << 20, 5);  // 48 MiB, more than is page-locked
  const float* there = put(values);
  EXPECT_EQ(get(there, static_cast<std::int64_t>(values.size())), values);
}

}  // namespace
}  // namespace train_gpt_v2::testing
#endif
