"""The steps and the arithmetic of scripts/phase2.sh, which checks the arguments; standard library only."""
import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

GUARDS = ("none", "ewc", "replay")
DEMO_UTTERANCES = {True: 48, False: 1200}  # smoke or not
DEMO_BASE_STEPS = {True: 16, False: 700}
DEMO_STEPS = {True: 12, False: 300}
# C's rates are meant for 100,000 steps on a large model; the demo's few steps need larger ones.
DEMO_RATE_FACTOR = 50
AUTO_LAMBDA_STEPS = 100  # ewc.lambda "auto" is chosen after 20 steps; a run should be long beside that
PLAN = {"per_layer": 148_000, "of": 2_000_000, "fewer": 13}


class Failed(Exception):
    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


def say(text):
    print("phase2: " + text, file=sys.stderr, flush=True)


def plain_path(manifest):
    """The file of a manifest that may end in ::am, @am or =am; the program knows the same suffixes."""
    found = None if os.path.exists(manifest) else re.fullmatch(r"(.+)(?:::|@|=)[A-Za-z_-]{2,8}", manifest)
    return found[1] if found else manifest


class Program:
    """Calls of train_gpt_v2; a signal to us is passed on to the one that is running."""

    def __init__(self, path, device):
        self.path, self.device, self.running, self.stopped = path, device, None, None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.forward)

    def forward(self, number, _frame):
        self.stopped = number
        if self.running is not None:
            self.running.send_signal(number)

    def call(self, arguments, environment=None):
        """Output of a call and its processor seconds."""
        if self.stopped:
            raise Failed(128 + self.stopped, "stopped")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        # A group of its own: a Ctrl-C reaches it once, through forward().
        self.running = subprocess.Popen([self.path] + arguments, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        out, _ = self.running.communicate()
        status, self.running = self.running.returncode, None
        if status:
            raise Failed(status if status > 0 else 128 - status, "train_gpt_v2 %s ended with status %d" % (arguments[0], status))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return out.decode(), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def json(self, arguments):
        return json.loads(self.call(arguments)[0])

    def on_device(self, arguments):
        return arguments + ["--device", self.device]


def scaled_steps(config, steps, horizon):
    """Everything of a run that counts in steps, for a run of `steps` instead of `horizon`."""
    changes = {"train": {"max_steps": steps, "epochs": None, "log_interval": max(1, steps // 30)},
               "optimizer": {"total_steps": None, "warmup_steps": steps // 10},
               "validation": {"interval": max(1, steps // 3)},
               "checkpoint": {"interval": steps},
               "early_stopping": {"enabled": False}}
    peft = {}
    pruning = config["peft"]["pruning_steps"]
    for at in pruning:
        peft.setdefault("pruning_steps", []).append(max(len(peft.get("pruning_steps", [])) + 1, at * steps // horizon))
    for key in ("tinit", "tfinal", "delta_t"):
        if config["peft"][key] is not None:
            peft[key] = max(1, config["peft"][key] * steps // horizon)
    if peft:
        changes["peft"] = peft
    return changes


def merge_changes(into, more):
    for section, values in more.items():
        into.setdefault(section, {}).update(values)
    return into


class Cycle:
    def __init__(self, options):
        self.options = options
        self.output = os.path.abspath(options.output)
        self.program = Program(os.path.abspath(options.program), options.device)
        self.sets = [part for setting in options.set for part in ("--set", setting)]
        self.config = self.program.json(["config", "show", "--config", options.config] + self.sets)
        self.method = self.config["peft"]["method"]
        self.result = {"config": os.path.abspath(options.config), "method": self.method, "targets": {}}

    def path(self, *parts):
        return os.path.join(self.output, *parts)

    def write_json(self, name, content):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        os.replace(path + ".tmp", path)
        return path

    # --- whose data ---

    def choose_data(self):
        needed = [plain_path(one) for one in self.config["data"]["train_manifests"]] + [self.config["init"]["from"] or ""]
        missing = [path for path in needed if not os.path.exists(path)]
        chosen = self.options.data or ("demo" if missing else "config")
        if chosen == "config" and missing:
            raise Failed(66, "%s names a file that is not there: %s" % (self.options.config, missing[0] or "init.from is null"))
        say("data: the demo's" if chosen == "demo" else "data: that of " + self.options.config)
        self.result["data"] = chosen
        return chosen

    def use_config(self):
        replay = self.config["data"]["replay"]
        self.protected = self.options.protect or [one["manifest"] for one in replay]
        self.new = self.config["data"]["val_manifests"]
        if not self.new:
            raise Failed(64, "data.val_manifests is empty: the new language cannot be measured")
        self.fisher_manifests, self.replay = self.protected, replay
        self.base = self.config["init"]["from"]
        steps = self.options.steps or (DEMO_STEPS[True] if self.options.smoke else None)
        horizon = self.config["train"]["max_steps"]
        self.changes = {}
        if steps:
            if horizon is None and self.config["peft"]["pruning_steps"]:
                raise Failed(64, "--steps needs train.max_steps in the configuration, to shorten its pruning steps alike")
            self.changes = scaled_steps(self.config, steps, horizon or steps)

    def use_demo(self):
        smoke = self.options.smoke
        corpora = {}
        for voices in ("first", "second"):
            corpora[voices] = self.path("demo", voices)
            self.program.call(["demo-data", "--out", corpora[voices], "--voices", voices, "--utterances", str(DEMO_UTTERANCES[smoke])])
        with open(os.path.join(corpora["first"], "demo.json"), encoding="utf-8") as file:
            demo = json.load(file)
        manifest = lambda voices, part: os.path.join(corpora[voices], part + "_pairs.jsonl::am")
        base_steps = DEMO_BASE_STEPS[smoke]
        say("base: %d steps on the first voices" % base_steps)
        base = {"extends": os.path.join(corpora["first"], "demo.json"),
                "train": {"max_steps": base_steps},
                "optimizer": {"warmup_steps": base_steps // 10},
                "validation": {"interval": max(1, base_steps // 2), "text_usage_gap": False},
                "checkpoint": {"interval": base_steps},
                "logging": {"tensorboard": False}}
        self.train("base", base)
        self.base = self.path("runs", "base", "best_model.pth")
        self.new = [manifest("second", "val")]
        self.protected = [manifest("first", "val")]
        self.fisher_manifests = [manifest("first", "train")]
        self.replay = [{"manifest": manifest("first", "train"), "share": self.options.replay_share}]
        steps = self.options.steps or DEMO_STEPS[smoke]
        changes = scaled_steps(self.config, steps, self.config["train"]["max_steps"] or steps)
        optimizer = {"learning_rate": self.config["optimizer"]["learning_rate"] * DEMO_RATE_FACTOR, "groups": []}
        for group in self.config["optimizer"]["groups"]:
            group = {key: value for key, value in group.items() if value is not None}
            if "learning_rate" in group:
                group["learning_rate"] *= DEMO_RATE_FACTOR
            optimizer["groups"].append(group)
        self.changes = merge_changes(changes, {
            "model": demo["model"],
            "init": {"from": self.base},
            "data": {"train_manifests": [manifest("second", "train")], "val_manifests": self.new, "replay": [],
                     "tokenizer": os.path.join(corpora["first"], "tokenizer", "demo.model"), "base_tokenizer": None, "num_workers": 2},
            "train": {"batch_size": demo["train"]["batch_size"], "grad_accumulation": 1},
            "peft": {"lora_dropout": 0},  # as the demo's model: the fast engine, and "auto" for EWC
            "trainable": {"text_rows": None},
            "validation": {"max_batches": None},
            "optimizer": optimizer})

    # --- the steps ---

    def train(self, name, content):
        return self.train_with(name, self.write_json(os.path.join("configs", name + ".json"), content))

    def train_with(self, name, config):
        folder = self.path("runs", name)
        self.program.call(self.program.on_device(["train", "-q", "--config", config, "--output-dir", folder]))
        return folder

    def measure_fisher(self):
        say("Fisher information on " + ", ".join(self.fisher_manifests))
        self.fisher = self.path("fisher.safetensors")
        arguments = ["fisher", "--json", "-q", "--checkpoint", self.base, "--weights", "raw", "--config", self.run_config("fisher", {}),
                     "--output", self.fisher, "--samples", str(self.options.fisher_samples or (16 if self.options.smoke else 500))]
        for one in self.fisher_manifests:
            arguments += ["--manifest", one]
        # Measured again only when something it depends on is another file than before.
        stamp = lambda path: [os.stat(path).st_size, os.stat(path).st_mtime_ns]
        asked = {"arguments": arguments, "files": {path: stamp(path) for path in [self.base] + [plain_path(one) for one in self.fisher_manifests]}}
        note = self.path("fisher.json")
        if os.path.exists(note) and os.path.exists(self.fisher):
            with open(note, encoding="utf-8") as file:
                before = json.load(file)
            if before["asked"] == asked and before["written"] == stamp(self.fisher):
                say("measured before")
                self.result["fisher"] = before["result"]
                return
        self.result["fisher"] = self.program.json(self.program.on_device(arguments))
        self.write_json("fisher.json", {"asked": asked, "written": stamp(self.fisher), "result": self.result["fisher"]})

    def run_config(self, name, guard):
        content = {"extends": os.path.abspath(self.options.config)}
        merge_changes(content, self.changes)
        merge_changes(content, {"logging": {"tensorboard": False}})
        for setting in self.options.set:
            key, _, value = setting.partition("=")
            try:
                value = json.loads(value)
            except ValueError:
                pass
            *parents, last = key.split(".")
            place = content
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = value
        merge_changes(content, guard)
        return self.write_json(os.path.join("configs", name + ".json"), content)

    fisher = ""

    def guards(self):
        """Name -> what is added to the configuration. The first is the run without guards, where there is one."""
        asked = [one for one in self.options.guards.split(",") if one]
        if asked == ["config"] or not self.protected:
            if not self.protected:
                say("no protected language is named (--protect, data.replay): forgetting is not judged")
            return {"config": {}}
        off = {"ewc": {"enabled": False}, "data": {"replay": []}}
        variants = {"none": off,
                    "ewc": {"ewc": {"enabled": True, "fisher": self.fisher, "lambda": self.ewc_lambda()}, "data": {"replay": []}},
                    "replay": {"ewc": {"enabled": False}, "data": {"replay": self.replay}}}
        if not self.replay:
            say("data.replay is empty: no run with replay")
            asked = [one for one in asked if one != "replay"]
        return {name: variants[name] for name in GUARDS if name in asked}

    def ewc_lambda(self):
        """C's; where "auto" cannot be (dropout in front of the adapters) or comes too late, the lower end of the plan's 1,000 to 10,000."""
        given = self.config["ewc"]["lambda"]
        late = (self.changes.get("train", {}).get("max_steps") or AUTO_LAMBDA_STEPS) < AUTO_LAMBDA_STEPS
        dropout = self.changes.get("peft", {}).get("lora_dropout", self.config["peft"]["lora_dropout"])
        return 1000 if given == "auto" and (late or dropout > 0) else given

    def evaluate(self, checkpoint, extra=()):
        """Losses on the new language and on each protected manifest."""
        def losses(manifests):
            arguments = ["eval", "--json", "-q", "--checkpoint", checkpoint] + list(extra)
            for one in manifests:
                arguments += ["--manifest", one]
            line = self.program.json(self.program.on_device(arguments))
            return {key: line[key] for key in ("text_loss", "mel_loss", "mel_top1")}
        return {"new": losses(self.new), "protected": {one: losses([one]) for one in self.protected}}

    def with_forgetting(self, losses):
        growth = {one: values["mel_loss"] / self.before["protected"][one]["mel_loss"] - 1 for one, values in losses["protected"].items()}
        return dict(losses, forgetting=growth, worst=max(growth.values()) if growth else None)

    def best_file(self, folder):
        best = os.path.join(folder, "best_model.pth")
        return best if os.path.exists(best) else os.path.join(folder, "latest.pt")

    def run_all(self):
        base_config = ["--config", self.run_config("eval", {"ewc": {"enabled": False}}), "--weights", "raw"]
        self.before = self.evaluate(self.base, base_config)
        self.base_config = base_config
        self.result["base"] = dict(self.before, checkpoint=self.base)
        self.result["runs"] = {}
        for name, guard in self.guards().items():
            say("training: " + name)
            checkpoint = self.best_file(self.train_with(name, self.run_config(name, guard)))
            self.result["runs"][name] = dict(self.with_forgetting(self.evaluate(checkpoint)), checkpoint=checkpoint)
        first = next(iter(self.result["runs"]))
        if self.method and self.protected:
            for scale in [one for one in self.options.scales.split(",") if one]:
                merged = self.merge(self.result["runs"][first]["checkpoint"], "scaled.pth", scale)
                self.result["runs"]["%s, merge scale %s" % (first, scale)] = dict(self.with_forgetting(self.evaluate(merged)), scale=float(scale))
                os.unlink(merged)

    def merge(self, checkpoint, name, scale="1"):
        """One plain checkpoint; without adapters it is only copied out."""
        output = self.path(name)
        if not self.method:
            self.program.call(["export", "-q", "--checkpoint", checkpoint, "--output", output])
            return output
        arguments = ["merge", "--json", "-q", "--checkpoint", checkpoint, "--output", output, "--scale", scale]
        for one in self.new:
            arguments += ["--manifest", one]
        self.merged = self.program.json(arguments)
        return output

    def choose(self):
        """The run to keep: the best on the new language among those that forget little enough, else the one that forgets least."""
        runs = {name: run for name, run in self.result["runs"].items() if "checkpoint" in run}
        kept = {name: run for name, run in runs.items() if run["worst"] is None or run["worst"] <= self.options.max_forgetting}
        if kept:
            return min(kept, key=lambda name: kept[name]["new"]["mel_loss"])
        return min(runs, key=lambda name: runs[name]["worst"])

    def compare(self):
        chosen = self.choose()
        run = self.result["runs"][chosen]
        say("kept: " + chosen)
        final = self.merge(run["checkpoint"], "merged_final.pth")
        extra = [] if self.method else self.base_config[:2]
        merged = self.with_forgetting(self.evaluate(final, extra))
        self.result["kept"] = chosen
        self.result["merged"] = dict(merged, checkpoint=final, proof=getattr(self, "merged", None))
        self.describe_adapters(run["checkpoint"])
        options, target = self.options, self.target
        target("mel_top1", merged["new"]["mel_top1"], options.min_top1, merged["new"]["mel_top1"] >= options.min_top1)
        target("mel_loss", merged["new"]["mel_loss"], options.max_mel_loss, merged["new"]["mel_loss"] < options.max_mel_loss)
        if merged["worst"] is not None:
            target("forgetting", merged["worst"], options.max_forgetting, merged["worst"] <= options.max_forgetting)
        gap = max(abs(merged[part][key] - run[part][key]) for part, key in (("new", "mel_loss"), ("new", "text_loss")))
        target("merged_equals_adapter", gap, 1e-4, gap <= 1e-4)
        names = lambda file: {one["name"] for one in self.program.json(["inspect", "--json", file])["tensors"] if one["name"].startswith("model.")}
        ours = names(final)
        same = names(self.base) <= ours and not any(".lora_" in name or ".base_layer." in name for name in ours)
        target("plain_keys", same, True, same)
        overhead = self.overhead(final, extra)
        target("overhead", overhead, options.max_overhead, overhead <= options.max_overhead)

    def overhead(self, final, extra):
        """Processor time of the merged model over the base's on the same batches, one thread; the least of several tries."""
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        least = {}
        for _ in range(3):
            for name, checkpoint, more in (("base", self.base, self.base_config), ("merged", final, extra)):
                arguments = ["eval", "--json", "-q", "--checkpoint", checkpoint, "--set", "train.num_threads=1"] + list(more)
                for one in self.new:
                    arguments += ["--manifest", one]
                seconds = self.program.call(self.program.on_device(arguments), environment)[1]
                least[name] = min(least.get(name, seconds), seconds)
        self.result["processor_seconds"] = least
        return least["merged"] / least["base"]

    def describe_adapters(self, checkpoint):
        found = self.program.json(["inspect", "--json", checkpoint]).get("adapters")
        if not found:
            return
        layers = {}
        for one in found["modules"]:
            if one["module"].startswith("gpt.h."):
                layer = layers.setdefault(one["module"].split(".")[2], [0, 0])
                layer[0] += one["parameters"]
                layer[1] += one["base_elements"]
        here = {"method": found["method"], "parameters": found["parameters"], "ranks": found["ranks"], "plan": PLAN}
        if layers:
            ours, theirs = (sum(layer[i] for layer in layers.values()) / len(layers) for i in (0, 1))
            here.update(per_layer=ours, of=theirs, fewer=theirs / ours)
        self.result["adapters"] = here

    def target(self, name, value, limit, met):
        self.result["targets"][name] = {"verdict": "pass" if met else "missed", "value": value, "limit": limit}

    # --- the end ---

    def finish(self, begun):
        missed = [name for name, one in self.result["targets"].items() if one["verdict"] != "pass"]
        self.result["verdict"] = "missed" if missed else "pass"
        self.result["seconds"] = round(time.monotonic() - begun, 1)
        self.write_json("phase2.json", self.result)
        folders = [self.path("runs", name) for name in os.listdir(self.path("runs"))]
        self.program.call(["report", "-q", "--output", self.path("report.html")] + sorted(folders))
        print(self.table())
        return 10 if missed else 0

    def table(self):
        rows = [["", "new mel loss", "new top-1", "protected mel loss", "change"]]
        lines = [("base", self.result["base"])] + list(self.result["runs"].items()) + [("merged: " + self.result["kept"], self.result["merged"])]
        for name, one in lines:
            old = [values["mel_loss"] for values in one["protected"].values()]
            worst = one.get("worst")
            rows.append([name, "%.4f" % one["new"]["mel_loss"], "%.4f" % one["new"]["mel_top1"], " ".join("%.4f" % value for value in old) or "-",
                         "%+.2f %%" % (100 * worst) if worst is not None else "-"])
        text = columns(rows) + "\n"
        adapters = self.result.get("adapters")
        if adapters and "fewer" in adapters:
            text += "\n%s: %d parameters, per layer %d of %d, %.1f times fewer (plan: %dk of %dM, %dx)\n" % (
                adapters["method"], adapters["parameters"], adapters["per_layer"], adapters["of"], adapters["fewer"],
                PLAN["per_layer"] // 1000, PLAN["of"] // 1_000_000, PLAN["fewer"])
        rows = [["target", "verdict", "value", "limit"]]
        for name, one in self.result["targets"].items():
            shown = [str(one[key]) if isinstance(one[key], bool) else "%.6g" % one[key] for key in ("value", "limit")]
            rows.append([name, one["verdict"]] + shown)
        return text + "\n" + columns(rows) + "\n\n" + self.result["verdict"] + ": " + self.path("phase2.json")


def columns(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in ("program", "config", "output"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--data", choices=["config", "demo"])
    parser.add_argument("--protect", action="append", default=[])
    parser.add_argument("--guards", default=",".join(GUARDS))
    parser.add_argument("--scales", default="0.25,0.5,0.75")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--fisher-samples", type=int)
    parser.add_argument("--replay-share", type=float, default=0.05)
    parser.add_argument("--min-top1", type=float, default=0.35)
    parser.add_argument("--max-mel-loss", type=float, default=4.0)
    parser.add_argument("--max-forgetting", type=float, default=0.02)
    parser.add_argument("--max-overhead", type=float, default=1.1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def main():
    begun = time.monotonic()
    try:
        cycle = Cycle(arguments())
        if cycle.choose_data() == "demo":
            cycle.use_demo()
        else:
            cycle.use_config()
        if cycle.protected and "ewc" in cycle.options.guards.split(","):
            cycle.measure_fisher()
        cycle.run_all()
        cycle.compare()
        sys.exit(cycle.finish(begun))
    except Failed as problem:
        say(str(problem))
        sys.exit(problem.status)


if __name__ == "__main__":
    main()
