#include "train_gpt_v2/core/error_codes.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace train_gpt_v2 {
namespace {

using enum ExitStatus;

// One row per code. Families: ARG command line, CFG configuration, DAT data, TOK tokenizer, CKP checkpoints and
// weights, IO files, MEM memory, NUM numerics, GPU devices, NET distributed, HNG hangs, INT bugs,
// PFT adapters, EWC forgetting.
constexpr auto kCodes = std::to_array<ErrorCode>({
    // --- ARG: command line
    {"ARG001", kUsage, "wrong use of the command line",
     "An option or sub-command is unknown, repeated or lacks its value. `train_gpt_v2 COMMAND --help` lists them."},
    // --- CFG: configuration
    {"CFG001", kConfig, "the configuration has problems",
     "All problems found are listed at once, each with file, line and column, the value and what is allowed."},
    {"CFG002", kConfig, "a configuration is not JSON",
     "The first place where the text cannot be read is printed. // and /* */ comments are allowed, trailing commas are "
     "not."},
    {"CFG003", kConfig, "a module pattern fits no tensor, or two groups fit the same",
     "Patterns are globs over dotted parameter names, * within a segment. `train_gpt_v2 inspect FILE` lists the "
     "names."},
    {"CFG004", kConfig, "a config.yaml of the Python trainer cannot be imported",
     "`config import` reads its gpt: section, dataset.bpe_model and gpt_checkpoint. The line and the reason are "
     "printed."},
    {"CFG011", kConfig, "a tensor that is to train gets no gradient",
     "With precomputed conditioning the conditioners are replaced by files. Use model.conditioning \"online\" to train "
     "them."},
    {"CFG013", kConfig, "nothing trains",
     "trainable.freeze leaves no parameter. Correct trainable.freeze and trainable.train."},
    {"CFG014", kConfig, "no training data is named",
     "data.train_manifests is empty. Name at least one manifest of pairs there."},
    {"CFG015", kConfig, "the run would have no step",
     "Its data make fewer micro-batches than train.grad_accumulation takes for one step, and an incomplete step is not "
     "made. Lower train.grad_accumulation, or raise train.epochs."},
    {"CFG016", kConfig, "a choice is needed to continue a run of the Python trainer",
     "The Python trainer masks the gradient of the base text rows while weight decay still acts on them. Say with "
     "trainable.text_rows whether to go on like that (python_mask), to train all rows, or only the new ones."},
    {"CFG017", kConfig, "the fused engine cannot run this configuration",
     "The message says why; train.engine \"auto\" chooses."},
    {"CFG018", kConfig, "new tokens whose rows are frozen",
     "The tokenizer has more tokens than the start weights, so their rows were made by averaging, but the text table "
     "does "
     "not train. Name it in trainable.train (\"wte\"), best with trainable.text_rows \"new_only\"."},
    {"CFG020", kConfig, "a configuration is needed",
     "Checkpoints of this program carry theirs; other weight files need --config with the model section."},
    {"CFG021", kConfig, "no manifest to work on", "Give --manifest, or data.val_manifests in the configuration."},
    {"CFG022", kConfig, "the vocoder command cannot be used",
     "It must name a program and hold {codes} and {out}, e.g. \"my_vocoder {codes} {out}\"; quotes must be closed."},
    // --- DAT: data
    {"DAT001", kBadData, "a data file is malformed",
     "The message names the file, the line or field, and the value. Correct it, or set data.on_bad_sample to "
     "\"skip\"."},
    {"DAT002", kBadData, "a manifest of single clips instead of pairs",
     "Training on single clips makes the prompt equal to the target, and the model learns to copy the prompt's sound. "
     "Make pairs with the Python tools' build_gpt_prompt_pairs.py."},
    {"DAT003", kBadData, "a sample is longer than the model's position tables",
     "Text takes at most model.max_text_tokens ids, speech at most max_mel_tokens + 1 codes. data.on_overlong decides "
     "between leaving such samples out, cutting them, and this error."},
    {"DAT004", kBadData, "a code is not allowed",
     "Codes lie in 0..number_mel_codes-1 and are stored without the start and stop code."},
    {"DAT005", kBadData, "a text id is outside the vocabulary",
     "The ids were made with another tokenizer than the one of this model. Tokenise again, or correct "
     "model.number_text_tokens."},
    {"DAT006", kBadData, "an array does not have the expected shape, type or length",
     "The manifest or the model's dimensions disagree with a .npy file. Both values are printed."},
    {"DAT007", kBadData, "an array holds a value that is not finite",
     "A NaN or infinity in a condition, emotion vector or feature file would spoil every weight. Compute it again."},
    {"DAT008", kBadData, "too few usable samples",
     "More samples are bad than data.max_bad_fraction allows, or none is left. The reasons are counted and shown."},
    {"DAT009", kBadData, "an order file names a pair that cannot be used",
     "Each id of an order file must name exactly one pair of the manifests that was not left out."},
    {"DAT030", kBadData, "a packed set is damaged",
     "A checksum, a size or a table of the set is wrong. Pack the manifests again; inspect DIR --verify checks every "
     "byte."},
    {"DAT031", kBadData, "a packed set cannot serve this run",
     "It was packed without arrays that are needed here, or by a newer program. Pack the manifests again."},
    {"DAT041", kBadData, "speech features are too short or too long for the conditioning encoder",
     "The encoder needs at least 3 frames (60 ms) and holds fewer than 10,001 (200 s). Cut the prompt or drop the "
     "sample."},
    {"DAT042", kBadData, "an id lies outside the model's tables",
     "Text ids must be below model.number_text_tokens + 1 and codes below model.number_mel_codes."},
    {"DAT043", kBadData, "a sample is longer than the model's position tables",
     "Limits are model.max_text_tokens ids and model.max_mel_tokens + 1 codes; data.on_overlong says what happens "
     "beyond."},
    {"DAT090", kBadData, "a listening sheet cannot be read",
     "samples/step_N/notes.json must be {\"samples\": [{\"id\": ..., \"pronunciation\": 1 to 5, ...}]}. Correct the "
     "JSON or delete it."},
    {"DAT092", kBadData, "a cases file is malformed",
     "Each line is {id, text or text_ids, and a voice: condition_path and emo_vec_path, prompt, or "
     "speaker_features_path}. "
     "The file and the line are printed."},
    // --- TOK: tokenizer
    {"TOK001", kBadData, "the tokenizer model is damaged or not a SentencePiece model",
     "The file is checked before SentencePiece reads it. Copy it again from where it was trained."},
    {"TOK002", kBadData, "the tokenizer numbers its special pieces in another way",
     "IndexTTS2 needs <s> 0, </s> 1, <unk> 2 and no <pad>: other numbers collide with its start and stop tokens."},
    {"TOK003", kConfig, "tokenizer and model have different vocabulary sizes",
     "model.number_text_tokens must equal the number of pieces of data.tokenizer."},
    {"TOK004", kConfig, "the tokenizer does not extend the base tokenizer",
     "Pieces of data.base_tokenizer have other ids in data.tokenizer, so the base model's rows would belong to other "
     "pieces. "
     "Extend the base model (new pieces are appended), or name the tokenizer the base model was trained with."},
    {"TOK010", kBadData, "a tokenizer model cannot be extended",
     "extend-vocab appends to SentencePiece BPE models without byte pieces, such as IndexTTS2's bpe.model."},
    {"TOK011", kConfig, "the size asked of extend-vocab cannot be reached",
     "--size is the number of pieces of the result. It must hold the base's pieces and every character, and the texts "
     "must "
     "give enough merges for the rest; the message says what is possible."},
    {"TOK012", kBadData, "a text for extend-vocab cannot be used",
     "Texts are UTF-8 with one utterance a line, or manifests (*.jsonl) with target_text or text."},
    {"TOK013", kBadData, "words would keep an unknown piece", "Clean the words that are named from the texts."},
    // --- CKP: checkpoints and weights
    {"CKP001", kBadData, "a checkpoint or weight file is damaged",
     "Structure or checksums do not hold. `train_gpt_v2 inspect --verify FILE` names the damaged record."},
    {"CKP002", kBadData, "a file of a kind that is not read",
     "TorchScript archives, torch.save files from before version 1.6, bare pickles and foreign zips are told apart by "
     "their content; the message says how to turn each into a file that is read."},
    {"CKP003", kBadData, "a checkpoint lacks a value, or it has another type",
     "The value's place is printed with what was expected and found. The file is whole but of another kind, or was "
     "written by a program that stores this value differently."},
    {"CKP004", kBadData, "a file without any tensor",
     "It could be read, but holds no weights: an empty dict, or only numbers and texts."},
    {"CKP020", kConfig, "weights of a file do not fit the configured model",
     "The first tensors that differ are listed with both shapes. The model section must describe the file's model; "
     "only "
     "the number of text rows may differ when training starts from a base model."},
    {"CKP021", kBadData, "the weights belong to another architecture",
     "IndexTTS-2.5 and other networks have tensors that UnifiedVoice of IndexTTS2 lacks. Use the gpt.pth of "
     "IndexTTS-2."},
    {"CKP022", kBadData, "adapters that are not merged",
     "A model is needed, but the file holds adapter deltas apart from their base. Merge them with `train_gpt_v2 "
     "merge`, "
     "or name the base as init.from and the adapter's folder as init.peft_adapter."},
    {"CKP023", kBadData, "tensors of the model are missing in the file",
     "The file is not a complete state dict of this model; the missing names are listed."},
    {"CKP007", kBadData, "a checkpoint's state cannot be used",
     "Optimiser state, counters or scaler are malformed or do not fit the model. Use an older checkpoint."},
    {"CKP005", kBadData, "the weights do not fit the model",
     "Names or shapes differ from the configured model section. Use the configuration the checkpoint was trained "
     "with."},
    {"CKP006", kBadData, "a checkpoint of a newer program", "Update train_gpt_v2; older formats are always read."},
    {"CKP010", kConfig, "this run differs from the one that wrote the checkpoint",
     "Each difference is named with both values and its class. Undo it, or accept its class for this start with "
     "--allow-change NAME. Another model or tokenizer needs a fresh run with init.from."},
    {"CKP011", kConfig, "the run directory already holds checkpoints",
     "--resume none only starts in an empty run directory."},
    {"CKP012", kBadData, "no checkpoint in the run directory can be used", "All are damaged; the warnings name each."},
    {"CKP013", kUsage, "an ambiguous checkpoint name",
     "The name exists in two places with different content; give a folder."},
    {"CKP014", kMissingInput, "no EMA weights in this file", "EMA was off in that run; use --weights raw."},
    // --- IO: files
    {"IO001", kMissingInput, "a named input does not exist",
     "The path is printed as it was resolved. Relative paths in a file are relative to that file."},
    {"IO002", kIo, "reading or writing failed",
     "The operating system refused; its reason is printed. Free space or repair the disk, then run the same command."},
    {"IO003", kCannotCreate, "an output cannot be created",
     "The folder is missing, not writable, or the name is taken by something else."},
    {"IO004", kBadData, "an input is larger than its limit or not a regular file",
     "Inputs are limited before anything is allocated; devices, pipes and sockets are never read."},
    {"IO005", kTemporary, "another process is training in this run directory",
     "The run directory is locked while a process trains in it. Wait for it, stop it, or choose another --output-dir."},
    {"IO006", kBadData, "a .npy file is malformed or of a kind that is not read",
     "Little-endian int16/32/64, uint8/16 and float16/32/64 arrays in C order are read. Save the array again with "
     "numpy.save(path, numpy.ascontiguousarray(array).astype(type))."},
    {"IO008", kIo, "a file was cut short while it was being read",
     "Another program truncated or rewrote an input in place. Restore it and run the same command again; to change "
     "inputs of "
     "a running training, write a new file and rename it over the old one."},
    {"IO007", kIo, "the vocoder command failed",
     "The codes are written all the same. Run the command by hand on one of the .npy files to see what it says."},
    // --- PFT, EWC: adapters and forgetting
    {"PFT001", kConfig, "the adapter settings cannot be used",
     "The message names the peft.* key, its value, and what the model or the other keys allow."},
    {"PFT002", kBadData, "an adapter does not fit",
     "Names, shapes, ranks or the kind of the stored adapter differ from the model or from its adapter_config.json."},
    {"PFT003", kConfig, "the pruning schedule cannot take effect",
     "Every pruning step must lie within the run, in order, and leave the ranks that the target asks for."},
    {"PFT004", kBadData, "a model without adapters where adapters are needed",
     "merge and export --format peft work on a checkpoint of a run with peft.method, or on weights with "
     "init.peft_adapter."},
    {"PFT005", kBadData, "the merged model differs from the adapters",
     "Both forms were run on real samples; logits or losses differ by more than rounding. Nothing was written. Merge "
     "an "
     "earlier checkpoint; a looser --tolerance accepts the difference that was printed."},
    {"EWC001", kBadData, "a Fisher file does not fit",
     "It was measured on other weights, another vocabulary or another model. Measure again: train_gpt_v2 fisher."},
    {"NUM010", kDiverged, "adapters hold non-finite numbers",
     "An update went wrong before. Resume from an earlier checkpoint with a lower learning rate."},
    {"NUM011", kDiverged, "the importance of ranks is not finite",
     "Pruning by it would be arbitrary. Resume from an earlier checkpoint with a lower learning rate."},
    {"NUM020", kBadData, "a model's scores are not finite",
     "The weights hold infinities or NaN, or overflow in this precision. `train_gpt_v2 inspect FILE` shows the "
     "tensors; "
     "take an earlier checkpoint."},
    // --- DEM: the demo corpus
    {"DEM001", kMissingInput, "a system package for the demo corpus is missing",
     "demo-data reads Amharic text from libreoffice-l10n-am and aspell-am and speaks with espeak-ng. Run "
     "scripts/setup.sh."},
    {"DEM002", kIo, "making the demo corpus failed",
     "A program it calls failed, or an installed file is damaged. Reinstall the package that the message names."},
    {"DEM003", kBadData, "codes do not belong to this demo corpus",
     "Only codes that the corpus' own codebook knows can be turned into sound; real codes need "
     "sampling.vocoder_command."},
    {"DEM004", kMissingInput, "the run has nothing to compare with the baseline",
     "The summary of a demo run needs a finished validation with its text-usage gap in metrics.jsonl. Train further."},
    {"GPU001", kConfig, "the GPU driver is too old for this build", "Update the driver, or run with --device cpu."},
    {"GPU002", kUsage, "no such GPU", "--device names a GPU that is not there or not usable."},
    {"NUM001", kDiverged, "training diverged",
     "stability.max_consecutive steps in a row were not finite, or stood out and were skipped. RUN/black_box holds "
     "their "
     "batches. Go on from an older checkpoint with a lower optimizer.learning_rate, or without those samples."},
    {"NUM002", kDiverged, "fp16 gradients stay non-finite", "Train in bf16 or fp32, or with a lower learning rate."},
    {"NUM003", kDiverged, "rollbacks do not help",
     "The loss or the gradient norm stood out again after stability.max_rollbacks rollbacks. Look at the batches in "
     "RUN/black_box; lower optimizer.learning_rate, or raise stability.skip_steps or stability.z_threshold."},
    // --- NET: several ranks
    {"NET001", kTemporary, "the ranks of a run do not meet",
     "Every rank connects to the store at MASTER_ADDR:MASTER_PORT. Start all of them with torchrun, srun or "
     "scripts/launch_local.sh; the port must be free on rank 0's machine and open in between."},
    {"NET002", kTemporary, "contact with the other ranks is lost",
     "A rank has died or its machine cannot be reached. Its own log says why. Start all ranks again; the run continues "
     "from its newest checkpoint."},
    {"NET003", kConfig, "the ranks disagree",
     "They must run the same program with the same configuration on the same files. Parameters that differ after the "
     "start mean a defective device or a bug; the newest checkpoint before that is good."},
    {"NET004", kConfig, "the ranks cannot share the accumulation",
     "train.grad_accumulation counts micro-batches over all ranks, so it must be a multiple of their number."},
    // --- MEM, HNG, INT
    {"MEM001", kOutOfMemory, "out of memory",
     "Lower train.batch_size and raise train.grad_accumulation by the same factor: the effective batch stays."},
    {"HNG001", kHang, "no progress for too long",
     "The last batch and the phase are printed. Run the same command again."},
    {"INT001", kInternal, "a bug in train_gpt_v2", "Please report it with the output of train_gpt_v2 --version."},
});

}  // namespace

std::span<const ErrorCode> error_codes() {
  return kCodes;
}

const ErrorCode* find_error_code(std::string_view code) {
  const auto same = [code](const ErrorCode& known) {
    return std::equal(known.code.begin(), known.code.end(), code.begin(), code.end(), [](char a, char b) {
      return a == static_cast<char>(std::toupper(static_cast<unsigned char>(b)));
    });
  };
  const auto found = std::find_if(kCodes.begin(), kCodes.end(), same);
  return found == kCodes.end() ? nullptr : &*found;
}

}  // namespace train_gpt_v2
