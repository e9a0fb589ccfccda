#!/usr/bin/env bash
# Packs the program with the libraries it needs into one archive that runs wherever it is unpacked.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/package.sh [options] OUT.tar.zst

Writes train_gpt_v2/{bin,lib,configs,scripts} as one archive: the built program, every library it loads except those of
the C library itself, and the scripts that run on compute nodes. The target needs nothing but Linux on the same processor
family, a C library at least as new as this machine's and, for GPUs, the driver. What is packed is what was built: a CPU
build gives a small package.

  tar --zstd -xf OUT.tar.zst
  train_gpt_v2/bin/train_gpt_v2 --version

  --program FILE  the program to pack (default: $TRAIN_GPT_V2, else build/release/bin/train_gpt_v2)
  --level N       compression, 1 to 19 (default 9)
  -h, --help      this text

Exit status: 0 done, 64 wrong use, 66 the program or a library is missing, 73 the archive cannot be written.
USAGE
}

fail() { local status=$1; shift; printf 'package: %s\n' "$*" >&2; exit "$status"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${TRAIN_GPT_V2:-$root/build/release/bin/train_gpt_v2}
level=9 out=""
while [ $# -gt 0 ]; do
  case "$1" in
    --program|--level)
      [ $# -gt 1 ] || fail 64 "$1 needs a value"
      if [ "$1" = --program ]; then program=$2; else level=$2; fi
      shift 2 ;;
    -h|--help) usage; exit 0 ;;
    -*) fail 64 "unknown option '$1' (--help shows the options)" ;;
    *) [ -z "$out" ] || fail 64 "one archive at a time"; out=$1; shift ;;
  esac
done
[ -n "$out" ] || fail 64 "no archive named (--help shows the use)"
case "$level" in [1-9]|1[0-9]) ;; *) fail 64 "--level takes 1 to 19, not '$level'" ;; esac
[ -x "$program" ] || fail 66 "$program is not built"
command -v zstd >/dev/null || fail 66 "zstd is missing: scripts/setup.sh names the packages"
if ! mkdir -p "$(dirname "$out")" 2>/dev/null || [ ! -w "$(dirname "$out")" ]; then fail 73 "cannot write $out"; fi

stage=$(mktemp -d "$(dirname "$out")/.package.XXXXXX")
trap 'rm -rf "$stage"' EXIT
tree=$stage/train_gpt_v2
mkdir -p "$tree/bin" "$tree/lib" "$tree/configs" "$tree/scripts"

# Everything the loader would load, but the C library and the loader: those must be the target's own.
loaded=$(ldd "$program")
if missing=$(grep -m 1 '=> not found$' <<<"$loaded"); then fail 66 "a library is not found: $missing"; fi
libraries=$(sed -nE 's/^[[:space:]]*([^[:space:]]+) => (.+) \(0x[0-9a-f]+\)$/\1 \2/p' <<<"$loaded")  # a path may hold spaces
while read -r name path; do
  case "$name" in
    libc.so.*|libm.so.*|libdl.so.*|librt.so.*|libpthread.so.*|libutil.so.*|libresolv.so.*|ld-linux*) continue ;;
  esac
  cp -L "$path" "$tree/lib/$name"
  # cuDNN loads its parts by name when they are first used.
  case "$name" in libcudnn.so.*) cp -L "$(dirname "$path")"/libcudnn_*.so.* "$tree/lib/" ;; esac
done <<<"$libraries"

cp "$program" "$tree/bin/train_gpt_v2"
chmod u+w "$tree/bin/train_gpt_v2"
cat >"$stage/rpath.cmake" <<'CMAKE' # CMake reads files that it can seek in, no pipe
file(RPATH_SET FILE "${FILE}" NEW_RPATH "$ORIGIN/../lib")
CMAKE
cmake "-DFILE=$tree/bin/train_gpt_v2" -P "$stage/rpath.cmake" || fail 66 "the program's library path cannot be set"
strip --strip-debug "$tree/bin/train_gpt_v2"
cp "$root"/configs/* "$tree/configs/"
cp "$root/LICENSE" "$root/README.md" "$tree/"
for script in run_until_done.sh slurm.sbatch rollback.sh; do cp "$root/scripts/$script" "$tree/scripts/"; done

# The same content gives the same archive.
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$stage" -cf - train_gpt_v2 |
  zstd -q -T0 "-$level" -f -o "$stage/archive" || fail 73 "the archive cannot be written"
mv -f "$stage/archive" "$out"
echo "$out: $(du -h "$out" | cut -f1), unpacked $(du -sh "$tree" | cut -f1), $(find "$tree/lib" -type f | wc -l) libraries"
