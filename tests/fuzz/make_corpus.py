#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: small, valid files of every kind. usage: make_corpus.py [FOLDER]

Needs nothing but the standard library. Inputs that once broke something are added to the folders by hand.
"""
import io
import json
import os
import struct
import sys
import zipfile

out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "corpus")


def put(target, name, data):
    os.makedirs(os.path.join(out, target), exist_ok=True)
    with open(os.path.join(out, target, name), "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def npy(descr, shape, data, version=1):
    header = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }" % (descr, shape)
    header += " " * (-(10 + len(header) + 1) % 16) + "\n"
    length = struct.pack("<H", len(header)) if version == 1 else struct.pack("<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


put("npy", "codes", npy("<i4", "(5,)", struct.pack("<5i", 1, 2, 3, 4, 8191)))
put("npy", "codes64", npy("<i8", "(2,)", struct.pack("<2q", 7, 9)))
put("npy", "condition", npy("<f4", "(2, 3)", struct.pack("<6f", 1, 2, 3, 4, 5, 6)))
put("npy", "half", npy("<f2", "(4,)", b"\0\x3c" * 4))
put("npy", "scalar", npy("<f8", "()", struct.pack("<d", 1.5)))
put("npy", "empty", npy("|u1", "(0, 7)", b""))
put("npy", "version2", npy("<u2", "(3,)", b"\1\0\2\0\3\0", 2))

pair = {"id": "a__b", "speaker": "s1", "language": "am", "prompt_id": "a", "prompt_audio_path": "a.wav",
        "prompt_condition_path": "condition/a.npy", "prompt_condition_len": 32, "prompt_emo_vec_path": "emo/a.npy",
        "prompt_duration": 3.25, "target_id": "b", "target_audio_path": "b.wav", "target_text": "ሰላም ለዓለም",
        "target_text_ids_path": "ids/b.npy", "target_text_len": 12, "target_codes_path": "codes/b.npy", "target_code_len": 77,
        "target_condition_path": "condition/b.npy", "target_emo_vec_path": "emo/b.npy", "target_duration": 1.5}
put("manifest", "pair", json.dumps(pair, ensure_ascii=False))
put("manifest", "escaped", json.dumps(pair))
put("manifest", "single", json.dumps({"id": "x", "audio_path": "x.wav", "text": "x", "codes_path": "c", "code_len": 3}))
put("manifest", "lines", "\n".join(json.dumps({**pair, "id": str(i), "prompt_duration": None}) for i in range(3)) + "\n\n")
put("manifest", "features", json.dumps({"id": "1", "prompt_features_path": "f.npy", "target_text": "a", "target_codes_path": "c.npy"}))

put("config", "empty", "{}")
put("config", "plain", '{"train": {"batch_size": 4, "max_steps": 10}, "optimizer": {"betas": [0.9, 0.98], "learning_rate": 2e-5}}')
put("config", "comments", '{// one\n "model": {"model_dim": 64, "layers": 2, "heads": 4}, /* two */ "ema": {"enabled": true, "decay": 0.99}}')
put("config", "groups", '{"optimizer": {"groups": [{"name": "h", "match": ["mel_head", "gpt.h.*.ln_*"], "lr_scale": 2.0}]},'
                        ' "data": {"train_manifests": ["a.jsonl::am"], "replay": [{"manifest": "b.jsonl", "share": 0.25}]}}')
put("config", "nulls", '{"$schema": "x", "train": {"max_steps": null, "epochs": 3}, "validation": {"by": ["language", "speaker"]}}')


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def integers(values):
    return b"(" + b"".join(integer(v) for v in values) + b"t"


def tensor(key="0", elements=16, offset=0, shape=(4, 4), strides=(4, 1), kind="FloatStorage"):
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + integer(elements) + b"tQ"
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + integers(shape) + integers(strides) + b"\x89"
            + b"ccollections\nOrderedDict\n)RtR")


def pickled(body):
    return b"\x80\x02" + body + b"."


pickles = {
    "tensor": pickled(b"}" + text("w") + tensor() + b"s"),
    "views": pickled(b"}(" + text("a") + tensor(offset=4, shape=(2, 2), strides=(1, 4)) + text("b") + tensor(shape=(16,), strides=(1,)) + b"u"),
    "ordered": pickled(b"ccollections\nOrderedDict\n)R(" + text("w") + tensor() + b"u"),
    "kinds": pickled(b"](NI01\nK\x05M\x05\x01J\x05\0\0\0G?\xf8\0\0\0\0\0\0\x88\x89" + text("t") + b"C\x03abc" + integer(1 << 40) + b"e"),
    "memo": pickled(b"}q\0(" + text("a") + b"q\1" + b"h\1" + text("b") + b"h\0" + b"u"),
    "tuples": pickled(b"(K\1\x85K\2K\3\x86K\4K\5K\6\x87t"),
    "unknown": pickled(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR" + text("state") + b"b"),
    "half": pickled(tensor(elements=8, shape=(8,), strides=(1,), kind="HalfStorage")),
}
for name, data in pickles.items():
    put("pickle", name, data)
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:
        for entry, content in (("archive/data.pkl", data), ("archive/byteorder", b"little"), ("archive/data/0", struct.pack("<16f", *range(16))),
                               ("archive/version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(entry, (1980, 1, 1, 0, 0, 0)), content)
    put("zip", name, memory.getvalue())


def safetensors(header, data):
    raw = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + data


put("safetensors", "two", safetensors({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                                       "b": {"dtype": "I64", "shape": [1], "data_offsets": [16, 24]}}, bytes(24)))
put("safetensors", "empty_tensor", safetensors({"z": {"dtype": "BF16", "shape": [0, 3], "data_offsets": [0, 0]}}, b""))
put("safetensors", "bool", safetensors({"m": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}, b"\1\0\1"))
put("zip", "safetensors", safetensors({"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)))


def field(number, data):
    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    raw = bytearray()
    while value > 127:
        raw.append(value & 127 | 128)
        value >>= 7
    raw.append(value)
    return bytes(raw)


def piece(value, score, kind=1):
    return field(1, field(1, value.encode()) + b"\x15" + struct.pack("<f", score) + (field(3, kind) if kind != 1 else b""))


pieces = piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("<unk>", 0, 2) + piece("▁ሰ", -1) + piece("a", -2) + piece("ላም", -3)
trainer = field(2, field(3, 2) + field(4, 6) + field(40, 2) + field(41, 0) + field(42, 1))
# A character map: size of the trie, a trie whose root is all there is, one string.
trie = struct.pack("<I", 0) * 256
put("tokenizer", "model", pieces + trainer + field(3, field(1, b"identity") + field(2, b"")))
put("tokenizer", "charsmap", pieces + trainer + field(3, field(1, b"nmt") + field(2, struct.pack("<I", len(trie)) + trie + b"a\0")))
put("tokenizer", "pieces", pieces)

put("cases", "text", json.dumps({"id": "c1", "text": "ሰላም", "prompt": "a__b", "category": "short", "emotion": "calm"}, ensure_ascii=False) + "\n")
put("cases", "ids", json.dumps({"id": "c2", "text_ids": [5, 6, 7], "prompt": "p"}) + "\n" + json.dumps({"id": "c3", "text_ids": [8]}) + "\n")
put("cases", "paths", json.dumps({"id": "c4", "text_ids": [1, 2], "condition_path": "c.npy", "emo_vec_path": "e.npy"}))
put("cases", "alpha", json.dumps({"id": "c5", "text_ids": [3], "prompt": "p", "emotion_alpha": 0.5, "translation": "hello"}))

put("packed", "none", b"")
put("packed", "header", bytes([16, 0, 2, 1]))
put("packed", "rows", bytes([144, 0, 1, 3, 200, 0, 2, 255, 44, 1, 3, 7]))

put("sheet", "sheet", json.dumps({"step": 5, "criteria": {"pronunciation": "?"}, "samples": [
    {"id": "a", "text": "b", "category": "c", "pronunciation": "yes", "prosody": "", "speaker": "no", "emotion": "4", "comment": "fine"}]}))
