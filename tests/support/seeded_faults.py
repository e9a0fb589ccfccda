"""Seeds faults into a small corpus and a configuration, and mends them by what train_gpt_v2 prints.

seeded_faults.py PROGRAM FIXTURES WORK; standard library only. Called by tests/cli/seeded_faults_test.sh.
"""
import json
import os
import random
import re
import struct
import subprocess
import sys

PROGRAM, FIXTURES, WORK = sys.argv[1:]

# Every fault of the data: what is done to the corpus -> the check that must name it ("" = by code of the array check).
FAULTS = {
    # records
    "a line that is no JSON": "malformed",
    "NaN, as Python's json writes it": "malformed",
    "a key twice in one record": "malformed",
    "an id twice in one file": "malformed",
    "a length that is no number": "malformed",
    "a text longer than the position table": "overlong",
    "codes longer than the position table": "overlong",
    "an empty text": "unreadable",
    "a clip that is its own prompt": "self_prompt",
    "codes padded to the batch's longest, durations known": "padded_codes",
    "the same, durations unknown": "padded_codes_neighbours",
    "rolling subtitles": "rolling_text",
    "a pair twice under two ids": "duplicate_pair",
    "one text under several clips": "duplicate_text",
    "a speaker with a single clip": "lonely_speaker",
    "speech five times too fast": "text_speed",
    "Amharic text marked as English": "language",
    "a validation clip that is trained on": "leakage_utterance",
    "a validation text that is trained on": "leakage_text",
    "validation speakers that are trained on": "leakage_speaker",
    # arrays
    "a codes file that is missing": "array_IO001",
    "an array cut off": "array_IO006",
    "a code outside the code book": "array_DAT004",
    "the stop code among the codes": "array_DAT004",
    "a text id outside the vocabulary": "array_DAT005",
    "a start id inside a text": "special_ids",
    "NaN in a condition": "array_DAT007",
    "infinity in an emotion vector": "array_DAT007",
    "an emotion vector of one value": "empty_features",
    "a condition of another model": "array_DAT006",
    "a length that is not the array's": "array_DAT006",
    "codes as real numbers": "array_DAT006",
    "a long repetition at the end": "padded_codes_tail",
    "one recording under two names": "duplicate_codes",
    "characters the tokenizer does not know": "unknown_pieces",
    "ids of another tokenizer": "other_tokenizer",
}
# And of the configuration: what must be printed about it.
CONFIG_FAULTS = {
    "a mistyped key": 'did you mean "learning_rate"?',
    "a number in quotes": "write it without quotes",
    "a mistyped word": 'did you mean "drop"?',
    "a name of the Python trainer": "this key is validation.interval",
    "a value out of range": "is outside 3 <= x",
    "a path where a list is expected": "write it in brackets",
    "heads that do not divide the width": "does not divide model.model_dim",
    "a manifest that is not there": "IO001",
    "another vocabulary than the tokenizer's": "TOK003",
    "weights of another model": "CKP0",
}

rng = random.Random(20261)
DIM, LATENTS, BOOK = 64, 32, 224
# Words that the fixtures' small tokenizer knows as a whole: few of its fidels stand alone.
WORDS = sorted({piece[1:] for piece in (line.split("\t")[0] for line in open(FIXTURES + "/tokenizer/extended.vocab", encoding="utf-8"))
                if piece.startswith("\u2581") and len(piece) > 1 and all("\u1200" <= c <= "\u135a" for c in piece[1:])})


def npy(path, kind, shape, values):
    header = "{'descr': '%s', 'fortran_order': False, 'shape': (%s,), }" % (kind, ", ".join(map(str, shape)))
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    with open(path, "wb") as out:
        out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        out.write(struct.pack("<%d%s" % (len(values), {"<i4": "i", "<f4": "f"}[kind]), *values))


def words(count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


class Corpus:
    def __init__(self, name, speakers, clips_per_speaker):
        self.name, self.folder, self.clips, self.extra = name, WORK + "/data", [], []
        os.makedirs(self.folder, exist_ok=True)
        for speaker in range(speakers):
            for clip in range(clips_per_speaker):
                self.add("%s_s%02d" % (name, speaker), "%s_%02d_%02d" % (name, speaker, clip))

    def add(self, speaker, clip_id, text=None, codes=None):
        codes = codes or [rng.randrange(BOOK) for _ in range(rng.randrange(50, 71))]
        self.clips.append({"id": clip_id, "speaker": speaker, "text": text or words(5), "codes": codes, "seconds": len(codes) / 50,
                           "ids": None, "kind": "<i4", "emotion": None, "condition": None, "shape": (LATENTS, DIM), "fields": {}})
        return self.clips[-1]

    def write(self):
        lines = []
        for at, clip in enumerate(self.clips):
            path = lambda what: "%s_%s.npy" % (clip["id"], what)
            npy(self.folder + "/" + path("codes"), clip["kind"], (len(clip["codes"]),), clip["codes"])
            npy(self.folder + "/" + path("condition"), "<f4", clip["shape"],
                clip["condition"] or [rng.gauss(0, 1) for _ in range(clip["shape"][0] * clip["shape"][1])])
            npy(self.folder + "/" + path("emotion"), "<f4", (DIM,), clip["emotion"] or [rng.gauss(0, 1) for _ in range(DIM)])
            mates = [c for c in self.clips if c["speaker"] == clip["speaker"]]
            prompt = mates[(mates.index(clip) + 1) % len(mates)]
            record = {"id": clip["id"] + "__" + prompt["id"], "speaker": clip["speaker"], "prompt_id": prompt["id"],
                      "prompt_condition_path": path("condition"), "prompt_emo_vec_path": path("emotion"),
                      "prompt_duration": prompt["seconds"], "target_id": clip["id"], "target_text": clip["text"],
                      "target_codes_path": path("codes"), "target_code_len": len(clip["codes"])}
            if clip["ids"] is not None:
                npy(self.folder + "/" + path("ids"), "<i4", (len(clip["ids"]),), clip["ids"])
                record["target_text_ids_path"] = path("ids")
                record["target_text_len"] = len(clip["ids"])
            record.update(clip["fields"])
            if clip["seconds"] is None:
                record["target_duration"] = None
            lines.append(json.dumps({key: value for key, value in record.items() if value != "-"}, ensure_ascii=False))
        path = "%s/%s_pairs.jsonl" % (self.folder, self.name)
        with open(path, "w", encoding="utf-8") as out:
            out.write("\n".join(lines + self.extra) + "\n")
        return path, lines


def seed_faults():
    train, other, val = Corpus("t", 16, 12), Corpus("u", 2, 12), Corpus("v", 6, 12)
    clip = iter(train.clips[30:])
    lines = train.write()[1]
    train.extra = ['{"id": "broken", ', lines[0].replace('"prompt_duration": ', '"prompt_duration": NaN, "x": ').replace('"id": "', '"id": "nan_', 1),
                   lines[1].replace('"id": "', '"id": "twice_', 1).replace('"speaker"', '"speaker": "a", "speaker"', 1),
                   lines[2], lines[3].replace('"id": "', '"id": "pair_', 1),
                   re.sub(r'"target_code_len": \d+', '"target_code_len": "many"', lines[4].replace('"id": "', '"id": "len_', 1))]
    next(clip)["text"] = words(90)
    one = next(clip)
    one["codes"] = [rng.randrange(BOOK) for _ in range(200)]
    one["seconds"] = 4.0
    next(clip)["text"] = " "
    one = next(clip)
    one["fields"] = {"prompt_id": one["id"]}
    for one in [next(clip) for _ in range(12)]:
        one["codes"] = one["codes"] + [rng.randrange(BOOK) for _ in range(110 - len(one["codes"]))]
    rolling = words(3).split()
    for one in [next(clip) for _ in range(30)]:
        rolling = rolling[-2:] + words(3).split()
        one["text"] = " ".join(rolling)
    same = words(5)
    next(clip)["text"] = next(clip)["text"] = same
    fast = next(clip)
    fast["text"], fast["codes"], fast["seconds"] = words(9), fast["codes"][:12], 12 / 50
    next(clip)["fields"] = {"language": "en"}
    missing = next(clip)
    cut = next(clip)
    next(clip)["codes"][5] = 9000
    next(clip)["codes"][-1] = 225
    next(clip)["ids"] = [5, 6, 99999]
    next(clip)["ids"] = [7, 0, 8, 9, 10, 11, 12, 13, 14, 15]
    next(clip)["condition"] = [float("nan")] + [0.5] * (LATENTS * DIM - 1)
    next(clip)["emotion"] = [0.25] * (DIM - 1) + [float("inf")]
    next(clip)["emotion"] = [0.5] * DIM
    next(clip)["shape"] = (LATENTS, DIM // 2)
    one = next(clip)
    one["fields"] = {"target_code_len": len(one["codes"]) - 3}
    next(clip)["kind"] = "<f4"
    next(clip)["codes"][-40:] = [7] * 40
    twin, original = next(clip), next(clip)
    twin["codes"], twin["seconds"] = list(original["codes"]), original["seconds"]
    for one in [next(clip) for _ in range(3)]:
        one["ids"] = [rng.randrange(20, 300) for _ in range(10)]
    train.add("t_alone", "t_alone_00")
    for one in other.clips:
        one["text"] += " ㊙"
    # Validation: neighbours of one length without durations, and what it shares with training.
    for at, one in enumerate(val.clips):
        one["seconds"] = None
        one["codes"] = [rng.randrange(BOOK) for _ in range(50 + 3 * (at // 12))]
    val.clips[0].update({key: train.clips[0][key] for key in ("id", "codes", "text")})
    val.clips[5]["text"] = train.clips[6]["text"]
    for one in val.clips[12:24]:
        one["speaker"] = "t_s03"
    paths = [corpus.write()[0] for corpus in (train, other, val)]
    os.remove("%s/data/%s_codes.npy" % (WORK, missing["id"]))
    os.truncate("%s/data/%s_codes.npy" % (WORK, cut["id"]), 150)
    return paths


def run(*words_, expect=None):
    result = subprocess.run([PROGRAM, *words_], capture_output=True, text=True, cwd=WORK, timeout=240)
    if expect is not None and result.returncode != expect:
        sys.exit("status %d, expected %d: %s\n%s\n%s" % (result.returncode, expect, words_, result.stdout, result.stderr))
    return result


def require(condition, what):
    if not condition:
        sys.exit("FAILED: " + what)


class User:
    """Changes the configuration by what is printed about it."""

    def __init__(self, config):
        self.config, self.path, self.read = config, WORK + "/run.json", []
        self.save()

    def save(self):
        with open(self.path, "w") as out:
            json.dump(self.config, out)

    def move(self, section, key, new_path):
        new_section, new_key = new_path.split(".")
        self.config.setdefault(new_section, {})[new_key] = self.config[section].pop(key)

    def mend(self, line):
        """One printed line of a problem; True when it said enough to act on."""
        line = re.sub(r"^.*run\.json:\d+:\d+: ", "", line)
        unknown = re.search(r'unknown key "(\w+)" in "(\w+)"; (?:did you mean|this key is) "?([\w.]+)', line)
        if unknown:
            self.move(unknown[2], unknown[1], unknown[3] if "." in unknown[3] else unknown[2] + "." + unknown[3])
            return True
        key = re.search(r"(\w+)\.(\w+)(?::| \()", line)
        if not key:
            return False
        section, name = self.config[key[1]], key[2]
        if "write it without quotes" in line:
            section[name] = json.loads(section[name])
        elif "write it in brackets" in line:
            section[name] = json.loads(re.search(r"brackets: (\[.*\])", line)[1])
        elif 'did you mean "' in line:
            section[name] = re.search(r'did you mean "(\w+)"', line)[1]
        elif "is outside" in line:
            section[name] = int(re.search(r"is outside (\d+) <=", line)[1])
        elif "does not divide model.model_dim" in line:
            section[name] = 2
        else:
            return False
        return True

    def check(self, *more):
        result = run("check", "--config", self.path, "--device", "cpu", "--json", *more)
        self.read.append(result.stdout)
        document = json.loads(result.stdout)
        require(document["exit_status"] == result.returncode, "the status is the one printed")
        return document


def mend_configuration(user, manifests):
    printed = ""
    for _ in range(6):
        document = user.check("--data-only")
        errors = [stage["error"] for stage in document["stages"] if "error" in stage]
        printed += json.dumps(errors, ensure_ascii=False).replace('\\"', '"')
        if not errors:
            break
        for error in errors:
            if error["code"] == "CFG001":
                require(all([user.mend(line) for line in error["details"] + [error["place"]] if "run.json" in line]), str(error))
            elif error["code"] == "IO001":  # the path as it was resolved is printed; the user sees that the folder lacks
                require("train_pairs.jsonl" in error["place"] + str(error["details"]) + error["message"], str(error))
                user.config["data"]["train_manifests"] = manifests[:2]
            elif error["code"] == "TOK003":
                user.config["model"]["number_text_tokens"] = int(re.search(r"number_text_tokens to (\d+)", error["fix"])[1])
            else:
                sys.exit("no way on from " + str(error))
        user.save()
    return printed


def main():
    manifests = seed_faults()
    model = json.load(open(FIXTURES + "/model/config.json"))["constructor"]
    model.pop("use_accel")
    positions = model["max_text_tokens"]
    model.update(heads=7, number_text_tokens=350, max_text_tokens=positions + 8)
    user = User({
        "model": model,
        "init": {"from": FIXTURES + "/model/gpt.pth"},
        "data": {"train_manifests": "train_pairs.jsonl", "val_manifests": [manifests[2]],
                 "tokenizer": FIXTURES + "/tokenizer/extended.model", "on_overlong": "dorp"},
        "train": {"batch_size": "8", "max_steps": 30, "log_interval": 5, "val_interval": 10, "num_threads": 1},
        "optimizer": {"learning_rte": 1e-3, "warmup_steps": 0},
        "checkpoint": {"keep": 1, "interval": 0}, "logging": {"progress": "off", "tensorboard": False}})

    printed = mend_configuration(user, manifests)
    document = user.check("--full")
    errors = {stage["name"]: stage["error"] for stage in document["stages"] if "error" in stage}
    require("weights" in errors, "the weights of another model: %s" % document["stages"])
    printed += json.dumps(errors, ensure_ascii=False)
    for what, text in CONFIG_FAULTS.items():
        require(text in printed, "%s: nothing printed like %r in\n%s" % (what, text, printed))
    user.config["model"]["max_text_tokens"] = positions
    user.save()

    found = {}
    for finding in document["data"]["findings"]:
        found[finding["check"]] = finding
        require(finding["fix"] and finding["count"] > 0, "a finding without a fix or a count: %s" % finding)
    lost = [what for what, check in FAULTS.items() if check not in found]
    require(not lost, "not found: %s\nfound: %s" % (lost, sorted(found)))
    require(found["malformed"]["count"] == 5, "five malformed records: %s" % found["malformed"])
    require(all(place["line"] > 0 for place in found["malformed"]["places"]), "every place has its line")
    require(document["exit_status"] == 65, "bad data is status 65")
    print("%d faults of the data and %d of the configuration were named" % (len(FAULTS), len(CONFIG_FAULTS)))

    # What the fixes say: let --repair write manifests, train on those, leave the manifest with unknown characters out.
    user.config["data"]["train_manifests"] = manifests[:1]
    user.save()
    document = user.check("--data-only", "--repair", WORK + "/repaired")
    user.config["data"]["train_manifests"] = document["repair"]["train_manifests"]
    user.config["data"]["val_manifests"] = document["repair"]["val_manifests"]
    left_out = [json.loads(line) for line in open(WORK + "/repaired/left_out.jsonl")]
    require(len(left_out) == document["repair"]["left_out"] and all(one["reason"] for one in left_out), "left_out.jsonl")
    user.save()
    document = user.check("--full")
    bad = [finding["check"] for finding in document["data"]["findings"] if finding["severity"] == "error"]
    # Padding without known durations cannot be cut; the fix says to preprocess again, which the user does.
    require(bad == ["padded_codes_neighbours"], "errors left after the repair: %s" % bad)
    user.config["data"]["val_manifests"] = [Corpus("w", 2, 12).write()[0]]
    user.save()
    document = user.check("--full")
    require(document["exit_status"] == 0, "errors are left: %s" % json.dumps(document, ensure_ascii=False)[:3000])
    measured = document["measured"]
    require(measured["step_seconds"] > 0 and measured["peak_memory_bytes"] > 1e6 and measured["steps"] == 30, str(measured))

    # An output folder that cannot be made, then the run that was announced.
    command = re.search(r"train with: train_gpt_v2 (.*)", document["verdict"])[1].split()
    open(WORK + "/file", "w").close()
    refused = run(*command, "--device", "cpu", "--output-dir", WORK + "/file/run", expect=73)
    require("error[IO003]" in refused.stderr and "fix:" in refused.stderr, refused.stderr)
    run(*command, "--device", "cpu", "--output-dir", WORK + "/run", "-q", expect=0)
    lines = [json.loads(line) for line in open(WORK + "/run/metrics.jsonl")]
    losses = [line["loss"] for line in lines if line["type"] == "train"]
    require(len(losses) == 6 and losses[-1] < losses[0] - 0.1, "the loss falls: %s" % losses)
    require(os.path.exists(WORK + "/run/DONE") and os.path.exists(WORK + "/run/data_report.json"), "the run is whole")

    # Before a continuation: the check sees the checkpoint, leaves no trace, and names what would be refused.
    before = sorted(os.listdir(WORK + "/run"))
    document = user.check("--output-dir", WORK + "/run")
    require(any("continues from step 30" in note for stage in document["stages"] for note in stage["notes"]), str(document["stages"]))
    user.config["train"]["seed"] = 5
    user.save()
    document = user.check("--output-dir", WORK + "/run")
    require(document["exit_status"] == 78 and "CKP010" in json.dumps(document["stages"]), str(document["stages"]))
    require(sorted(os.listdir(WORK + "/run")) == before, "the check left something in the run directory")
    print("trained: loss %.3f -> %.3f" % (losses[0], losses[-1]))


main()
