#!/usr/bin/env bash
# scripts/package.sh: the archive, unpacked in another place, runs with its own libraries and trains.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
program=${TGV2_BINARY:?ctest sets it}
fixtures=$root/tests/data/fixtures

fails_with 64 "no archive" "$root/scripts/package.sh"
fails_with 64 "unknown option" "$root/scripts/package.sh" --what "$work/x.tar.zst"
fails_with 64 "bad level" "$root/scripts/package.sh" --level 0 "$work/x.tar.zst"
fails_with 66 "no program" "$root/scripts/package.sh" --program "$work/none" "$work/x.tar.zst"
check "nothing is left behind" test -z "$(find "$work" -name '*.tar.zst' -o -name '.package*')"

# A library in a folder whose name has spaces.
mkdir -p "$work/fake" "$work/not a folder"
echo library >"$work/not a folder/libspaced.so.1"
# shellcheck disable=SC2016
printf '#!/bin/sh\nprintf "\\tlinux-vdso.so.1 (0x01)\\n\\tlibspaced.so.1 => %%s/libspaced.so.1 (0x02)\\n" "$FOLDER"\n' >"$work/fake/ldd"
chmod +x "$work/fake/ldd"
fails_with 0 "a library's path with spaces" env PATH="$work/fake:$PATH" FOLDER="$work/not a folder" \
  "$root/scripts/package.sh" --program "$program" --level 1 "$work/spaced.tar.zst"
check "it is packed whole" test "$(tar --zstd -xOf "$work/spaced.tar.zst" train_gpt_v2/lib/libspaced.so.1)" = library
printf '#!/bin/sh\nprintf "\\tlibnone.so.1 => not found\\n"\n' >"$work/fake/ldd"
fails_with 66 "a library that is not found" env PATH="$work/fake:$PATH" "$root/scripts/package.sh" --program "$program" "$work/x.tar.zst"
check "it is named" says "libnone.so.1"

check "packs" "$root/scripts/package.sh" --program "$program" --level 1 "$work/archive/package.tar.zst"
mkdir "$work/elsewhere"
check "unpacks" tar --zstd -C "$work/elsewhere" -xf "$work/archive/package.tar.zst"
rm -rf "$work/archive"
packed=$work/elsewhere/train_gpt_v2/bin/train_gpt_v2

# Every library but the C library's own comes from the package, whatever the environment says.
masked() { env -i PATH=/usr/bin:/bin HOME="$work" LC_ALL=C "$@"; }
foreign=$(masked ldd "$packed" | awk '$2 == "=>" {print $3}' | grep -v "^$work/elsewhere/" |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libutil|libresolv)\.so\.[0-9]+$' || true)
check "no library from outside: $foreign" test -z "$foreign"
check "no path of the build machine" bash -c "! readelf -d '$packed' | grep -E 'R(UN)?PATH' | grep -v '\[\$ORIGIN/../lib\]'"

python3 - "$fixtures" "$work/run.json" <<'PYTHON'
import json, sys
fixtures, out = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
json.dump({"model": model, "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"], "tokenizer": fixtures + "/tokenizer/extended.model"},
           "train": {"batch_size": 4, "max_steps": 3}, "validation": {"interval": 0}, "logging": {"progress": "off"}}, open(out, "w"))
PYTHON
cd "$work/elsewhere" || exit 1
check "says its version" masked "$packed" --version
check "trains" masked "$packed" --config "$work/run.json" --output-dir "$work/run" --device cpu -q
check "and saves" test -e "$work/run/latest.pt"
finish
