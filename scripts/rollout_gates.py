"""The runs and the arithmetic of scripts/rollout.sh, which checks the arguments; standard library only."""
import argparse
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time

NAMES = ["clipping", "best", "validation", "ema", "bucketing", "early_stopping"]
BIT_IDENTICAL = {"best", "validation", "ema", "early_stopping"}
SLACK_BYTES = 64 << 20  # what an allocator may differ by between two equal runs


def stopped_by_its_own_rule(folder):
    """Early stopping ended the run: what it was enabled for, not a failure."""
    try:
        with open(os.path.join(folder, "DONE"), encoding="utf-8") as file:
            return json.load(file).get("reason") == "early_stop"
    except (OSError, ValueError):
        return False


class CannotJudge(Exception):
    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


class Stopped(Exception):
    """A signal came to us: what ran has ended, and nothing more is started."""

    def __init__(self, number):
        super().__init__("stopped by " + signal.Signals(number).name)
        self.status = 128 + number


class Children:
    """Starts programs, one at a time; a signal to us is passed on to the one that is running."""

    def __init__(self):
        self.running, self.stopped, self.late = None, None, False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                signal.signal(number, self.forward)

    def forward(self, number, _frame):
        self.stopped = self.stopped or number
        if self.running is None:
            self.late = True
        else:
            self.running.send_signal(number)

    def start(self, command, **files):
        if self.stopped:
            raise Stopped(self.stopped)
        # A group of its own: a Ctrl-C reaches it once, through forward().
        self.running = subprocess.Popen(command, start_new_session=True, **files)
        if self.late:  # the signal fell between the question above and here
            self.running.send_signal(self.stopped)
        return self.running

    def ended(self):
        self.running = None
        if self.stopped:
            raise Stopped(self.stopped)


def exit_status(returncode):
    """As a shell tells it: death by signal n is 128 + n. A status that the program never gives is a fault of it: 70."""
    status = 128 - returncode if returncode < 0 else returncode
    return status if status >= 64 else 70


def say(text):
    print("rollout: " + text, file=sys.stderr, flush=True)


def read_lines(path):
    """The complete lines of a metrics.jsonl; the last may still be in the making."""
    lines = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    try:
                        lines.append(json.loads(line))
                    except ValueError:
                        pass
    except OSError:
        pass
    return lines


def number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def mean(lines, key):
    """Mean of a figure; the first line is left out, since it also covers what the checkpoint had not logged yet."""
    values = [line.get(key) for line in (lines[1:] if len(lines) > 2 else lines)]
    return sum(values) / len(values) if values and all(number(value) for value in values) else None


class Run:
    def __init__(self, folder, settings):
        self.folder, self.settings = folder, settings
        self.reason, self.status, self.seconds = None, None, 0.0
        self.lines, self.validations = [], []

    def read(self):
        every = read_lines(os.path.join(self.folder, "metrics.jsonl"))
        self.lines = [line for line in every if line.get("type") == "train"]
        self.validations = [line for line in every if line.get("type") == "validation"]

    def latest(self):
        return os.path.join(self.folder, "latest.pt")

    def log(self, pattern):
        try:
            with open(os.path.join(self.folder, "log.txt"), encoding="utf-8", errors="replace") as file:
                return re.search(pattern, file.read())
        except OSError:
            return None

    def longest_gap(self):
        """Seconds between two of its steps, with whatever came between them."""
        times = [line["time"] for line in self.lines if number(line.get("time"))]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)

    def trainable(self):
        """Numbers that train, as the banner counted them."""
        found = self.log(r"parameters +[0-9,]+, trainable ([0-9,]+)")
        return int(found[1].replace(",", "")) if found else 0

    def summary(self):
        speed = [line["tokens_per_second"] for line in self.lines if number(line.get("tokens_per_second"))]
        memory = [line["peak_memory_bytes"] for line in self.lines if number(line.get("peak_memory_bytes"))]
        return {"run": self.folder, "settings": self.settings, "steps": len(self.lines), "loss": mean(self.lines, "loss"),
                "text_loss": mean(self.lines, "text_loss"), "mel_loss": mean(self.lines, "mel_loss"),
                "mel_top1": mean(self.lines, "mel_top1"), "tokens_per_second": statistics.median(speed) if speed else None,
                "peak_memory_bytes": max(memory) if memory else None, "seconds": round(self.seconds, 3)}


class Rollout:
    def __init__(self, options, children):
        self.options, self.children = options, children
        self.runs = {}
        self.inspected = {}
        shown = self.call(["config", "show", "--json", "--config", options.config] + self.extra())
        self.config = shown.get("config", shown)
        self.start = self.inspect(options.resume).get("step")
        if not isinstance(self.start, int):
            raise CannotJudge(65, options.resume + " does not say its step")
        self.clip = self.config["train"]["grad_clip"] or 1.0

    def extra(self):
        return [part for setting in self.options.set for part in ("--set", setting)]

    def call(self, arguments):
        process = self.children.start([self.options.program] + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate()
        self.children.ended()
        if process.returncode:
            said = err.decode(errors="replace").strip()
            if process.returncode < 0:
                said = ("killed by signal %d; " % -process.returncode + said).rstrip("; ")
            raise CannotJudge(exit_status(process.returncode), " ".join(arguments[:2]) + ": " + said)
        return json.loads(out)

    def inspect(self, file):
        if file not in self.inspected:
            self.inspected[file] = self.call(["inspect", "--json", file])
        return self.inspected[file]

    def settings(self, name, steps):
        """What switches an improvement on; the interval is shortened so that something happens within `steps`."""
        value = lambda section, key, other: json.dumps(self.config[section][key] or other)
        usual = self.config["validation"]["interval"] or 2000
        interval = max(1, min(usual, steps // 3))
        patience = math.ceil(self.config["early_stopping"]["patience"] * usual / interval)  # as many steps as with the usual interval
        return {"clipping": {"train.grad_clip": json.dumps(self.clip)},
                "best": {"checkpoint.best_metrics": value("checkpoint", "best_metrics", ["mel_loss"])},
                "validation": {"validation.interval": str(interval)},
                "ema": {"ema.enabled": "true"},
                "bucketing": {"sampler.mode": "mega_batch" if self.config["sampler"]["mode"] == "mega_batch" else "buckets"},
                "early_stopping": {"early_stopping.enabled": "true", "early_stopping.patience": str(patience)}}[name]

    def all_settings(self, names, steps):
        off = {"train.grad_clip": "0", "checkpoint.best_metrics": "[]", "validation.interval": "0", "ema.enabled": "false",
               "sampler.mode": "shuffle", "early_stopping.enabled": "false"}
        for name in names:
            off.update(self.settings(name, steps))
        return off

    def run(self, label, settings, steps, control=None, resume=None):
        """One training run to step start + steps. Equal settings and steps: the run there is (a kept candidate is the next control)."""
        key = json.dumps([settings, steps, resume], sort_keys=True)
        if key in self.runs:
            return self.runs[key]
        folder = os.path.join(self.options.output, "runs", label)
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        run = Run(folder, settings)
        command = [self.options.program, "--config", self.options.config, "--output-dir", folder, "--resume", resume or self.options.resume,
                   "--device", self.options.device, "-q", "--max-steps", str(self.start + steps), "--allow-change", "order"]
        fixed = {"train.log_interval": "1", "train.deterministic": "true", "checkpoint.interval": str(max(1, steps // 5)),
                 "logging.tensorboard": "false", "logging.progress": "off", "sampling.interval": "0"}
        command += self.extra() + [part for item in {**fixed, **settings}.items() for part in ("--set", "%s=%s" % item)]
        say(label + ": " + " ".join("%s=%s" % item for item in settings.items()))
        limit = self.options.timeout if control is None else min(self.options.timeout, 120 + 5 * control.seconds)
        begun = time.monotonic()
        with open(folder + ".err", "wb") as errors:
            process = self.children.start(command, stdout=errors, stderr=errors)
            try:
                self.watch(process, run, control, begun, limit)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        self.children.ended()
        run.seconds, run.status = time.monotonic() - begun, process.returncode
        run.read()
        run.reason = run.reason or self.outcome(run, control, steps, resume)
        if run.reason is None:
            self.runs[key] = run
        return run

    def watch(self, process, run, control, begun, limit):
        """Ends a candidate at once when it hangs or its loss leaves the control's."""
        moved, lines = begun, 0
        quiet = None if control is None else 300 + 20 * control.longest_gap()
        while True:
            try:
                process.wait(timeout=0.5)
                return
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() - begun > limit:
                run.reason = "no end within %.0f s: hang" % limit
            elif control is not None:
                run.read()
                run.reason = self.left_control(run, control)
                if len(run.lines) > lines:
                    moved, lines = time.monotonic(), len(run.lines)
                if time.monotonic() - moved > quiet:
                    run.reason = run.reason or "no step for %.0f s: hang" % quiet
            if run.reason:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                return

    @staticmethod
    def left_control(run, control):
        """Loss over the last steps (10, fewer in a short run) above 1.5 times the control's over the same steps."""
        window = max(1, min(10, len(control.lines) // 2))
        theirs = {line["step"]: line.get("loss") for line in control.lines}
        for line in run.lines:
            if not number(line.get("loss")):
                return "the loss at step %d is not a number" % line["step"]
        pairs = [(line["loss"], theirs[line["step"]]) for line in run.lines if number(theirs.get(line["step"]))]
        for end in range(window, len(pairs) + 1):
            ours, other = (sum(pair[i] for pair in pairs[end - window:end]) for i in (0, 1))
            if ours > 1.5 * other:
                return "loss %.4f at step %d is more than 1.5 times the control's %.4f" % (
                    ours / window, run.lines[end - 1]["step"], other / window)
        return None

    def outcome(self, run, control, steps, resume):
        if run.status:
            with open(run.folder + ".err", encoding="utf-8", errors="replace") as file:
                text = " ".join(line.strip() for line in file.read().splitlines()[-4:])
            kind = {65: "failed load or bad data", 78: "refused", 80: "diverged", 82: "out of memory", 83: "hang",
                    -9: "killed, as by the system when memory runs out"}.get(run.status, "failed")
            return "%s (status %d): %s" % (kind, run.status, text[-600:])
        if (not run.lines or run.lines[-1]["step"] != self.start + steps) and not stopped_by_its_own_rule(run.folder):
            return "ended at step %s, not %d" % (run.lines[-1]["step"] if run.lines else "none", self.start + steps)
        if control is not None and resume is None:
            return self.left_control(run, control)
        return None

    # --- gates: name -> {verdict: pass | warn | fail, value, limit} ---

    def gates(self, name, control, candidate, label, steps, names):
        gates = {}

        def gate(what, value, limit, passed, warn=False):
            gates[what] = {"verdict": "fail" if not passed else "warn" if warn else "pass", "value": value, "limit": limit}

        # A run that early stopping ended is compared over the steps that it took.
        early = stopped_by_its_own_rule(candidate.folder)
        ours, others = candidate.lines, control.lines[:len(candidate.lines)] if early else control.lines
        bad = [line["step"] for line in candidate.lines for key in ("loss", "text_loss", "mel_loss", "grad_norm") if not number(line.get(key))]
        gate("finite", sorted(set(bad))[:10], "no NaN or Inf", not bad)
        identical = next((a["step"] for a, b in zip(ours, others) if a["loss"] != b["loss"]), None)
        if name in BIT_IDENTICAL:
            gate("bit_identical", identical, "no step whose loss differs", identical is None and 0 < len(ours) == len(others))
        if name == "clipping":
            first = next((line["step"] for line in ours if number(line.get("grad_norm")) and line["grad_norm"] > self.clip), None)
            gate("identical_until_clipped", {"first_clipped": first, "first_different": identical}, "no difference up to the first clipped step",
                 identical is None or (first is not None and identical > first))
        hard = 0.05 if name == "integration" else 0.10
        for key, warn, stop in (("loss", 0.02, hard), ("text_loss", 0.02, hard)):
            a, b = mean(others, key), mean(ours, key)
            change = (b - a) / a if number(a) and number(b) and a else None
            worse = change if key == "loss" and name != "integration" else abs(change) if change is not None else None
            gate(key, change, stop, worse is not None and worse <= stop, worse is not None and worse > warn)
        gates["loss"]["interval95"] = paired_interval(ours, others)
        rising, theirs = slope(ours), slope(others)
        gate("mel_loss_trend", rising, "not rising (t <= 3), or the control rises alike", rising is None or rising["t"] <= 3 or theirs["t"] > 3,
             rising is not None and rising["t"] > 2)
        top1 = mean(candidate.lines, "mel_top1")
        gate("mel_top1", top1, self.options.min_top1, top1 is not None and top1 >= self.options.min_top1)
        self.resources(gate, control, candidate, "ema" in names)
        if name in ("clipping", "bucketing", "integration"):
            before, after = self.evaluate(control.latest()), self.evaluate(candidate.latest())
            if before is not None and after is not None:
                gate("fixed_validation_mel_loss", {"control": before, "candidate": after}, 1.01, after <= 1.01 * before)
        if name in ("bucketing", "integration") and "bucketing" in names:
            found = candidate.log(r"speakers per batch ([0-9.]+) \(random ([0-9.]+)\)")
            here, random = (float(found[1]), float(found[2])) if found else (None, None)
            gate("speakers_per_batch", {"buckets": here, "random": random}, "half of random batches', warned below 0.8",
                 bool(found) and here >= 0.5 * random, bool(found) and here < 0.8 * random)
        self.keys(gate, control, candidate, names)
        self.round_trip(gate, candidate, label, steps)
        return gates

    def resources(self, gate, control, candidate, ema):
        a, b = control.summary(), candidate.summary()
        if number(a["peak_memory_bytes"]) and number(b["peak_memory_bytes"]):
            elsewhere = self.config["ema"]["device"] == "cpu" and not candidate.log(r"device +CPU")  # averages of a GPU's weights
            averages = 4 * candidate.trainable() if ema and not elsewhere else 0
            limit = int((1.01 if ema and elsewhere else 1.05) * a["peak_memory_bytes"] + SLACK_BYTES + averages)
            gate("peak_memory_bytes", b["peak_memory_bytes"], limit, b["peak_memory_bytes"] <= limit)
        ratio = b["tokens_per_second"] / a["tokens_per_second"] if a["tokens_per_second"] and b["tokens_per_second"] else None
        gate("speed", ratio, self.options.min_speed, ratio is not None and ratio >= self.options.min_speed)

    def evaluate(self, checkpoint):
        """Mel loss of the raw weights on the validation manifests; None where the config has none."""
        if not self.config["data"]["val_manifests"]:
            return None
        return self.call(["eval", "--json", "-q", "--device", self.options.device, "--weights", "raw", "--checkpoint", checkpoint])["mel_loss"]

    def keys(self, gate, control, candidate, names):
        report = self.inspect(candidate.latest())
        values, sections = report["values"], {part["name"]: part for part in report["sections"]}
        missing = [key for key in ("patience_counter", "best_val_mel_loss", "early_stopping_reference") if key not in values]
        if "ema" in names:
            if "ema_state" not in sections:
                missing.append("ema_state")
            if not values.get("ema_updates"):
                missing.append("ema_updates above 0")
        if "validation" in names:
            if not candidate.validations:
                missing.append("validation lines in metrics.jsonl")
            if "best" in names and not os.path.isfile(os.path.join(candidate.folder, "best_model.pth")):
                missing.append("best_model.pth")
            if "early_stopping" in names and not number(values.get("early_stopping_reference")):
                missing.append("a number in early_stopping_reference")
        gate("keys", missing, "nothing missing", not missing)
        shadow, predicted = sections.get("ema_state"), 4 * candidate.trainable()
        if "ema" in names and shadow:
            gate("ema_bytes", shadow["bytes"], {"predicted": predicted, "within": 0.01},
                 predicted > 0 and abs(shadow["bytes"] - predicted) <= 0.01 * predicted)
        other = self.inspect(control.latest())  # may hold averages already
        shadows = [sum(part["bytes"] for part in one["sections"] if part["name"] == "ema_state") for one in (report, other)]
        predicted = other["bytes"] + shadows[0] - shadows[1]
        gate("checkpoint_bytes", report["bytes"], {"predicted": predicted, "within": 0.01}, abs(report["bytes"] - predicted) <= 0.01 * predicted + 65536)

    def round_trip(self, gate, candidate, label, steps):
        """A new process continues from the last checkpoint but one and must end with the same tensors."""
        found = [int(m[1]) for m in map(re.compile(r"model_step(\d+)\.pth$").match, os.listdir(candidate.folder)) if m]
        earlier = [step for step in found if candidate.lines and step < candidate.lines[-1]["step"]]
        if not earlier:
            gate("save_load", "no earlier checkpoint was kept", "equal tensors", False)
            return
        again = self.run(label + "-again", candidate.settings, steps, candidate, os.path.join(candidate.folder, "model_step%d.pth" % max(earlier)))
        if again.reason:
            gate("save_load", again.reason, "equal tensors", False)
            return
        compared = self.call(["inspect", "--json", candidate.latest(), again.latest()])
        names = [entry["name"] for entry in compared["differences"]]
        differing = [name for name in names if name.startswith(("model.", "base_model.", "adapter.", "optimizer.", "ema_state."))]
        gate("save_load", {"from_step": max(earlier), "differing": differing[:10]}, "equal tensors", not differing and compared["equal"] > 0)

    # --- the plan ---

    def go_on(self, candidate, steps, gates):
        """The second half of the integration: a new process takes the candidate on to `steps`. The reason why it failed, or None."""
        if stopped_by_its_own_rule(candidate.folder):
            gates["full_run"] = {"verdict": "pass", "value": None, "limit": "no second half: early stopping ended the first"}
            gates["prompts"] = self.prompts(candidate)
            return None
        full = self.run("integration-full", candidate.settings, steps, resume=candidate.latest())
        if full.reason:
            return full.reason
        bad = [line["step"] for line in full.lines if not number(line.get("loss"))]
        value, passed, warned = {"run": full.folder, "steps": len(full.lines), "not_finite": bad[:10]}, not bad, False
        for key in ("loss", "text_loss", "mel_loss"):
            before, after = mean(candidate.lines, key), mean(full.lines, key)
            change = (after - before) / before if number(before) and number(after) and before else None
            value[key + "_change"] = change
            passed = passed and change is not None and change <= 0.05
            warned = warned or (change is not None and change < -0.05)
        seconds = [statistics.median(line["step_seconds"] for line in run.lines) for run in (candidate, full)]
        memory = [run.summary()["peak_memory_bytes"] for run in (candidate, full)]
        sizes = [self.inspect(run.latest())["bytes"] for run in (candidate, full)]
        value.update(step_seconds=seconds, peak_memory_bytes=memory, bytes=sizes)
        passed = passed and seconds[1] * self.options.min_speed <= seconds[0] and memory[1] <= 1.05 * memory[0] + SLACK_BYTES
        passed = passed and abs(sizes[1] - sizes[0]) <= 0.01 * sizes[0] + 65536
        gates["full_run"] = {"verdict": "fail" if not passed else "warn" if warned else "pass", "value": value,
                             "limit": "against the first half: each loss at most 5 % above (more than 5 % below is a warning), no NaN, "
                                      "step time within --min-speed, memory within 5 %, the checkpoint as large within 1 %"}
        gates["prompts"] = self.prompts(full)
        return None

    def prompts(self, full):
        """The fixed prompts, spoken with the same random numbers by the checkpoint it all began from and by the last one."""
        cases = self.config.get("sampling", {}).get("cases") or self.cases_of_validation()
        if not cases:
            return {"verdict": "pass", "value": None, "limit": "no prompts: the configuration names neither cases nor validation pairs"}
        value, limited, repeats = {}, [], []
        for when, checkpoint in (("before", self.options.resume), ("after", full.latest())):
            folder = os.path.join(self.options.output, "prompts", when)
            try:
                self.call(["sample", "--json", "-q", "--config", self.options.config, "--checkpoint", checkpoint, "--cases", cases,
                           "--out", folder, "--device", self.options.device, "--max-codes", str(self.options.max_codes)] + self.extra())
            except CannotJudge as problem:  # codes without sound are enough: a young model says some that no vocoder knows
                value[when + "_problem"] = str(problem)[-300:]
            said = read_lines(os.path.join(folder, "samples.jsonl"))
            if not said:
                return {"verdict": "fail", "value": value, "limit": "every prompt sampled before and after"}
            value[when] = [{key: one.get(key) for key in ("id", "length", "stop", "longest_repeat", "distinct_codes", "mean_logprob")} for one in said]
            limited.append(sum(one["stop"] != "stop" for one in said))
            repeats.append(sum(one["longest_repeat"] for one in said))
        worse = limited[1] > limited[0] or repeats[1] > 2 * repeats[0] + 20
        return {"verdict": "warn" if worse else "pass", "value": value,
                "limit": "warned where more prompts reach the limit than before, or codes repeat more than twice as long; listen to DIR/prompts"}

    def cases_of_validation(self):
        """The first pairs of the first validation manifest as cases; None where there is none that says its text."""
        manifests = self.config["data"]["val_manifests"]
        if not manifests:
            return None
        manifest = re.sub(r"(::|@|=)[A-Za-z_-]{2,8}$", "", manifests[0])
        if not os.path.isfile(manifest):
            return None
        cases = []
        with open(manifest, "rb") as file:
            for line in file:
                try:
                    pair = json.loads(line)
                except ValueError:  # blank, say; whether that is a fault, the runs have judged
                    continue
                if isinstance(pair, dict) and pair.get("target_text") and pair.get("id") and self.config["data"]["tokenizer"]:
                    cases.append({"id": pair["id"], "text": pair["target_text"], "prompt": pair["id"]})
                if len(cases) == 5:
                    break
        if not cases:
            return None
        path = os.path.join(self.options.output, "prompts.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(case, ensure_ascii=False) + "\n" for case in cases)
        return path

    def judge(self, name, kept, steps, full_steps=None):
        begun = time.monotonic()
        names = kept if name == "integration" else kept + [name]
        # Best and early stopping act on validations: alone, both runs validate.
        needed = ["validation"] if name in ("best", "early_stopping") and "validation" not in kept else []
        control_names = needed if name == "integration" else kept + needed
        control = self.run(name + "-control", self.all_settings(control_names, steps), steps)
        if control.reason:
            raise CannotJudge(exit_status(control.status or 70), name + ": the control run failed: " + control.reason)
        names = names + needed
        candidate = self.run(name + "-candidate", self.all_settings(names, steps), steps, control)
        gates, reason = {}, candidate.reason
        if reason is None:
            gates = self.gates(name, control, candidate, name + "-candidate", steps, names)
            if full_steps is not None and full_steps > steps:
                reason = self.go_on(candidate, full_steps, gates)
            failed = [key for key, value in gates.items() if value["verdict"] == "fail"]
            if failed and reason is None:
                reason = "; ".join("%s: %s, limit %s" % (key, json.dumps(gates[key]["value"]), gates[key]["limit"]) for key in failed)
        result = {"name": name, "verdict": "rolled_back" if reason else "kept", "control": control.summary(),
                  "candidate": candidate.summary(), "gates": gates, "seconds": round(time.monotonic() - begun, 3)}
        if reason:
            result["reason"] = reason
        return result


def paired_interval(ours, theirs):
    """95 % interval of the mean difference of the loss, from the differences per step, as a share of the control's mean."""
    pairs = [(a["loss"], b["loss"]) for a, b in zip(ours, theirs) if number(a.get("loss")) and number(b.get("loss"))]
    if len(pairs) < 3:
        return None
    differences, base = [a - b for a, b in pairs], statistics.fmean(b for _, b in pairs)
    middle, half = statistics.fmean(differences), 1.96 * statistics.stdev(differences) / math.sqrt(len(pairs))
    return [(middle - half) / base, (middle + half) / base]


def slope(lines):
    """Least-squares slope of mel_loss per step and its t value; None below 10 steps, where it says nothing."""
    points = [(line["step"], line["mel_loss"]) for line in lines[1:] if number(line.get("mel_loss"))]
    if len(points) < 10:
        return None
    x, y = (statistics.fmean(point[i] for point in points) for i in (0, 1))
    spread = sum((a - x) ** 2 for a, _ in points)
    rate = sum((a - x) * (b - y) for a, b in points) / spread
    rest = sum((b - y - rate * (a - x)) ** 2 for a, b in points) / (len(points) - 2)
    return {"per_step": rate, "t": rate / math.sqrt(rest / spread) if rest > 0 else 0.0}


def table(results):
    show = lambda value, form: form % value if number(value) else "-"
    rows = [["improvement", "verdict", "loss", "control", "speed", "warnings or reason"]]
    for one in results:
        notes = one.get("reason") or ", ".join(key for key, value in one["gates"].items() if value["verdict"] == "warn")
        rows.append([one["name"], one["verdict"], show(one["candidate"].get("loss"), "%.4f"), show(one["control"].get("loss"), "%.4f"),
                     show(one["gates"].get("speed", {}).get("value"), "%.2f"), notes[:160]])
    widths = [max(len(row[i]) for row in rows) for i in range(5)] + [0]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in ("program", "config", "resume", "output"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--integration-steps", type=int, default=2000)
    parser.add_argument("--min-top1", type=float, default=0.12)
    parser.add_argument("--min-speed", type=float, default=0.95)
    parser.add_argument("--max-codes", type=int, default=1500)
    parser.add_argument("--timeout", type=float, default=86400)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def main():
    options = arguments()
    children, results, status = Children(), [], 0

    def record(result):
        results.append(result)
        with open(os.path.join(options.output, "rollout.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        say("%s: %s%s" % (result["name"], result["verdict"], ": " + result["reason"] if "reason" in result else ""))

    name = "start"
    try:
        rollout = Rollout(options, children)
        kept = []
        for name in [options.only] if options.only else NAMES:
            record(rollout.judge(name, kept, options.steps))
            if results[-1]["verdict"] == "kept":
                kept = kept + [name]
        if not options.only:
            name = "integration"
            record(rollout.judge(name, kept, max(1, options.integration_steps // 2), options.integration_steps))
    except (CannotJudge, Stopped) as problem:
        status = problem.status
        record({"name": name, "verdict": "failed", "control": {}, "candidate": {}, "gates": {}, "seconds": 0, "reason": str(problem)})
    print(table(results))
    for one in results:
        if one["verdict"] == "rolled_back":
            status = status or 10
            changed = [key for key, value in one["candidate"]["settings"].items() if one["control"]["settings"].get(key) != value]
            say("to revert %s, set back: %s" % (one["name"], ", ".join("%s (was %s)" % (key, one["control"]["settings"].get(key)) for key in changed)))
    folders = [one[side]["run"] for one in results for side in ("control", "candidate") if one[side].get("run")]
    folders = [folder for folder in dict.fromkeys(folders) if read_lines(os.path.join(folder, "metrics.jsonl"))]
    page = os.path.join(options.output, "report.html")
    try:
        if folders and children.start([options.program, "report", "-q", "--output", page] + folders, stdout=subprocess.DEVNULL).wait():
            say("the report could not be written")
        children.ended()
    except Stopped as problem:
        status = status or problem.status
    sys.exit(status)


if __name__ == "__main__":
    main()
