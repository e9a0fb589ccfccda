#include "train_gpt_v2/app/pack_command.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/packed_set.h"
#include "train_gpt_v2/data/packer.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

Json report_json(const std::string& folder, const PackReport& report) {
  return {{"set", folder},
          {"manifests", report.manifests},
          {"pairs", report.pairs},
          {"arrays", report.arrays},
          {"named_arrays", report.named},
          {"bytes", report.bytes},
          {"rounded_to", report.rounded_to.empty() ? Json(nullptr) : Json(report.rounded_to)}};
}

std::string rounding_note(const std::string& type) {
  return type.empty() ? "values as in the source"
                      : concat("values rounded to ", type, ": other data than the manifests");
}

}  // namespace

void add_pack_command(CLI::App& app) {
  struct Arguments {
    PackRequest request;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  PackRequest& request = arguments->request;
  CLI::App* command = app.add_subcommand("pack", "one memory-mapped set of all that manifests name");
  command->add_option("--manifest", request.manifests, "pair manifest, with an optional ::language; repeatable")
      ->required();
  command->add_option("--output", request.output, "folder to make: new or empty")->required();
  command
      ->add_option("--dtype", request.dtype,
                   "of conditions, emotion vectors, features: fp32, fp16 or bf16 (default: as stored)")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16"}));
  command
      ->add_option("--conditioning", request.conditioning,
                   "auto: condition and emotion vector, else features; online: features; both: all that records name")
      ->check(CLI::IsMember({"auto", "online", "both"}))
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "one JSON document on stdout, nothing else");
  command->footer(
      "Example: train_gpt_v2 pack --manifest train_pairs.jsonl::am --output packed/train\n"
      "The folder then stands wherever a manifest may: \"train_manifests\": [\"packed/train\"].");
  command->callback([arguments] {
    PackRequest& asked = arguments->request;
    for (std::string& manifest : asked.manifests) manifest = absolute_path(manifest);
    const PackReport report = pack_manifests(asked);
    if (arguments->json) {
      std::cout << dump_json(report_json(absolute_path(asked.output), report), 2) << "\n";
      return;
    }
    std::cout << asked.output << ": " << human_count(report.pairs) << " pairs of " << report.manifests << " manifests, "
              << human_count(report.arrays) << " arrays (named " << human_count(report.named) << " times), "
              << human_bytes(report.bytes) << "; " << rounding_note(report.rounded_to) << "\n";
  });
}

void run_inspect_packed(const std::string& folder, bool verify, bool json, std::ostream& out) {
  const std::shared_ptr<const PackedSet> set = PackedSet::open(folder);
  if (verify) set->verify();
  if (json) {
    Json document{{"file", folder},
                  {"bytes", set->bytes()},
                  {"format", "packed set"},
                  {"verified", verify},
                  {"pairs", set->pairs().size()},
                  {"arrays", set->arrays().size()},
                  {"speakers", set->speakers().size()},
                  {"languages", set->languages()},
                  {"rounded_to", set->rounded_to().empty() ? Json(nullptr) : Json(set->rounded_to())},
                  {"manifests", Json::array()}};
    for (const PackedSet::Manifest& manifest : set->manifests()) {
      document["manifests"].push_back({{"source", manifest.source},
                                       {"language", manifest.language},
                                       {"pairs", manifest.pairs},
                                       {"bytes", manifest.bytes},
                                       {"content", manifest.content_hash}});
    }
    out << dump_json(document, 2) << "\n";
    return;
  }
  out << folder << ": packed set, " << human_bytes(set->bytes()) << ", " << human_count(set->pairs().size())
      << " pairs, " << human_count(set->arrays().size()) << " arrays, " << human_count(set->speakers().size())
      << " speakers; " << rounding_note(set->rounded_to()) << "\n";
  for (const PackedSet::Manifest& manifest : set->manifests()) {
    out << "  " << printable_text(manifest.source)
        << (manifest.language.empty() ? "" : concat("::", printable_text(manifest.language))) << ": "
        << human_count(manifest.pairs) << " pairs\n";
  }
  out << (verify ? "every byte read and checked\n" : "index checked; --verify also reads and checks every byte\n");
}

}  // namespace train_gpt_v2
