#include "train_gpt_v2/train/throughput.h"

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

struct DevicePeak {
  const char* name;   // as it stands in the driver's name
  double half, tf32;  // TFLOP/s, dense; bf16 and fp16 have the same peak where both exist
};
// Datasheets; longer names first where one holds another.
constexpr DevicePeak kPeaks[] = {{"B200", 2250, 1125},    {"H200", 989, 495},     {"H100 PCIe", 756, 378},
                                 {"H100", 989, 495},      {"A100", 312, 156},     {"L40S", 362, 183},
                                 {"RTX 4090", 165, 82.6}, {"RTX 3090", 71, 35.6}, {"A10", 125, 62.5},
                                 {"L4", 121, 60},         {"V100", 125, 0},       {"T4", 65, 0}};

}  // namespace

double training_flops(const ModelOptions& model, const Workload& work) {
  const auto width = static_cast<double>(model.model_dim), layers = static_cast<double>(model.layers);
  // positions = targets - 2 per sample + prefix + 3 per sample: text and codes with start and stop, without the last
  // one.
  const double count =
      (work.positions - work.text_tokens - work.mel_tokens) / static_cast<double>(model.prefix_length() + 1);
  const double length = count > 0 ? work.positions / count : 0;
  const double blocks = (72 * width * width * layers + 6 * length * width * layers) * work.positions;
  const double heads = 6 * width *
                       (static_cast<double>(model.text_rows()) * work.text_tokens +
                        static_cast<double>(model.number_mel_codes) * work.mel_tokens);
  return blocks + heads;
}

std::optional<double> peak_flops(const std::string& device, const std::string& precision) {
  for (const DevicePeak& peak : kPeaks) {
    // A whole word: "L4" is not in "L40".
    const std::size_t at = device.find(peak.name);
    if (at == std::string::npos) continue;
    const char after = device.c_str()[at + std::string_view(peak.name).size()];
    if (after != '\0' && after != ' ' && after != '-') continue;
    const double tera = precision == "fp32" ? peak.tf32 : peak.half;
    return tera > 0 ? std::optional<double>(tera * 1e12) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace train_gpt_v2
