"""The GGUF parser: blocks equal gguf's own reading, and no file, however damaged, gives more than an InputError."""

from __future__ import annotations

import random
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from model import InputError
from model.exchange.gguf_file import TYPES, GgufFile, Header

gguf = pytest.importorskip("gguf", reason="needs pip install -e '.[gguf]'")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def info(name: str = "a", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(
    *parts: bytes, version: int = 3, tensors: int | None = None, keys: int | None = None, data: int = 256, at: int = 32
) -> bytes:
    """Returns a file whose parts are metadata keys and tensor infos (those that end as `info` writes them)."""
    infos = [part for part in parts if part[8:9] == b"a"]
    head = b"GGUF" + struct.pack(
        "<IQQ", version, len(infos) if tensors is None else tensors, len(parts) - len(infos) if keys is None else keys
    )
    head += b"".join(part for part in parts if part not in infos) + b"".join(infos)
    return head + bytes(-len(head) % at) + bytes(data)


def opened(tmp_path: Path, content: bytes) -> GgufFile:
    (tmp_path / "x.gguf").write_bytes(content)
    return GgufFile(tmp_path / "x.gguf")


def alignment(value: int) -> bytes:
    return key("general.alignment", 4, struct.pack("<I", value))


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return key("list", 9, struct.pack("<IQ", kind, count) + content)


HUGE = 2**60
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "another format": (b"PK\3\4" + bytes(100), "not a GGUF file"),
    "only the magic": (b"GGUF", "damaged"),
    "version 1": (build(version=1), "version 1"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "2^60 tensors": (build(tensors=HUGE), "1152921504606846976 tensors"),
    "more tensors than bytes": (build(tensors=1000), "1000 tensors"),
    "2^60 keys": (build(keys=HUGE), "metadata keys"),
    "a key of 2^60 bytes": (build(struct.pack("<Q", HUGE) + bytes(20)), "longer than"),
    "a string of 2^60 bytes": (build(key("k", 8, struct.pack("<Q", HUGE))), "longer than"),
    "a string to behind the end": (build(key("k", 8, struct.pack("<Q", 2000))), "longer than"),
    "no UTF-8": (build(key("k", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "not UTF-8"),
    "an array of 2^60 numbers": (build(array(4, HUGE)), "more than fit"),
    "an array of 2^60 strings": (build(array(8, HUGE)), "more than fit"),
    "an array longer than the file": (build(array(10, 100)), "more than fit"),
    "an array of arrays": (build(array(9, 1)), "array of arrays"),
    "an array of an unknown type": (build(array(77, 1)), "unknown type 77"),
    "a value of an unknown type": (build(key("k", 13, b"")), "unknown type 13"),
    "a key twice": (build(*2 * [key("k", 0, b"1")]), "'k' appears twice"),
    "a part of a model": (build(key("split.count", 2, struct.pack("<H", 2))), "--merge"),
    "alignment 3": (build(alignment(3)), "general.alignment=3"),
    "alignment 0": (build(alignment(0)), "general.alignment=0"),
    "alignment 2^17": (build(alignment(2**17)), "general.alignment=131072"),
    "alignment in words": (build(key("general.alignment", 8, text("32"))), "general.alignment='32'"),
    "a tensor twice": (build(info(), info(offset=64)), "'a' appears twice"),
    "a tensor with a long name": (build(info("a" * 65)), "longer than 64"),
    "no dimension": (build(info(dims=())), "0 dimensions"),
    "five dimensions": (build(info(dims=(1,) * 5)), "5 dimensions"),
    "2^32 - 1 dimensions": (build(text("a") + struct.pack("<I", 2**32 - 1)), "4294967295 dimensions"),
    "a dimension of 0": (build(info(dims=(8, 0))), "shape (0, 8)"),
    "a dimension of 2^60": (build(info(dims=(8, HUGE))), "behind the end"),
    "dimensions whose product overflows": (build(info(dims=(2**32, 2**32, 2, 2))), "behind the end"),
    "an offset behind the end": (build(info(offset=256)), "behind the end"),
    "an offset of 2^64 - 32": (build(info(offset=2**64 - 32)), "behind the end"),
    "an odd offset": (build(info(offset=4)), "not aligned"),
    "overlapping tensors": (build(info(dims=(16,)), info("ab", offset=32)), "overlaps"),
    "equal tensors": (build(info(), info("ab")), "overlaps"),
    "a type that is not supported": (
        build(info(kind=12, dims=(256,))),
        "of type Q4_K; take a file of F32, F16",
    ),
    "an unknown type": (build(info(kind=200)), "of type number 200"),
    "rows that are no blocks": (build(info(kind=8, dims=(40,))), "40 columns"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_without_memory_for_what_it_claims(name, tmp_path):
    content, reason = HOSTILE[name]
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        opened(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert str(tmp_path / "x.gguf") in str(error.value)
    assert peak < 200_000


def test_what_is_no_readable_file_is_refused(tmp_path):
    for path, reason in ((tmp_path, "is not a file"), (tmp_path / "none.gguf", "there is no file")):
        with pytest.raises(InputError, match=reason):
            GgufFile(path)


def test_every_type_of_metadata_is_read(tmp_path):
    values: dict[str, tuple[int, str, Any]] = {
        "u8": (0, "B", 200), "i8": (1, "b", -3), "u16": (2, "H", 60000), "i16": (3, "h", -300), "u32": (4, "I", 2**31),
        "i32": (5, "i", -(2**31)), "f32": (6, "f", 0.5), "bool": (7, "?", True), "u64": (10, "Q", 2**63),
        "i64": (11, "q", -(2**63)), "f64": (12, "d", 0.1),
    }  # fmt: skip
    parts = [key("k" + name, kind, struct.pack("<" + letter, value)) for name, (kind, letter, value) in values.items()]
    strings = struct.pack("<IQ", 8, 2) + text("é") + text("")
    file = opened(
        tmp_path, build(*parts, key("kstr", 8, text("日本")), key("klist", 9, strings), array(3, 0), version=2)
    )
    assert file.metadata == {"k" + name: value for name, (_, _, value) in values.items()} | {
        "kstr": "日本", "klist": ["é", ""], "list": [],
    }  # fmt: skip


def written(path: Path, *, seed: int = 0) -> Path:
    """Writes a small file with gguf's own writer: each type that is supported, and all kinds of metadata."""
    import numpy as np

    numbers = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_bool("a.bool", True)
    writer.add_array("a.words", ["one", "two", "drei"])
    writer.add_array("a.numbers", [1, -2, 3])
    for kind in TYPES.values():
        number = gguf.GGMLQuantizationType[kind.name]
        values = numbers.normal(size=(3, 256)).astype(np.float32)
        if (
            kind.name == "Q6_K"
        ):  # gguf reads it and does not write it: random blocks, with a scale (float16) at their end
            blocks = numbers.integers(0, 256, (3, 210), dtype=np.uint8)
            blocks[:, 208:] = np.full((3, 1), 0.01, np.float16).view(np.uint8)
        else:
            blocks = gguf.quants.quantize(values, number)
        writer.add_tensor(f"{kind.name}.weight", blocks, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_each_type_is_read_as_ggufs_own_reader_reads_it(tmp_path):
    path = written(tmp_path / "x.gguf")
    file, reader = GgufFile(path), gguf.GGUFReader(path)
    assert file.types == {kind.name: 1 for kind in TYPES.values()}
    exact = file.tensor("F32.weight")
    for tensor in reader.tensors:
        own = file.tensor(tensor.name)
        theirs = torch.from_numpy(gguf.quants.dequantize(tensor.data.copy(), tensor.tensor_type))
        assert own.dtype == torch.float32 and own.shape == file.shapes[tensor.name] == (3, 256)
        assert torch.equal(own, theirs), tensor.name
        assert own.std() > 0.1
    assert not torch.equal(exact, file.tensor("F16.weight"))
    for field in reader.fields.values():
        assert field.name.startswith("GGUF.") or file.metadata[field.name] == field.contents()


def test_without_the_extra_plain_types_are_read_and_blocks_are_refused_by_its_name(tmp_path, monkeypatch):
    file = GgufFile(written(tmp_path / "x.gguf"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("F32", "F16", "BF16"):
        file.tensor(f"{name}.weight")
    with pytest.raises(InputError, match=r"Q4_1 needs the extra gguf: pip install -e '\.\[gguf\]'"):
        file.tensor("Q4_1.weight")


def test_infinite_scales_are_refused(tmp_path):
    path = written(tmp_path / "x.gguf")
    entry = GgufFile(path).entries["Q8_0.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start : entry.start + 2] = b"\x00\x7c"  # float16's infinity
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"'Q8_0\.weight' holds NaN or infinity"):
        GgufFile(path).tensor("Q8_0.weight")


def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path):
    path = written(tmp_path / "x.gguf")
    file = GgufFile(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="changed while it was read"):
        for name in file.shapes:
            file.tensor(name)


def is_read(content: bytes) -> bool:
    """Whether a header can be parsed; if not, it must be refused with an InputError."""
    try:
        header = Header(Path("x.gguf"), content)
    except InputError:
        return False
    assert all(0 < entry.start <= entry.start + entry.n_bytes <= len(content) for entry in header.entries.values())
    return True


def test_no_truncated_file_is_read(tmp_path):
    path = written(tmp_path / "x.gguf")
    content, end = path.read_bytes(), max(entry.start + entry.n_bytes for entry in GgufFile(path).entries.values())
    assert is_read(content) and is_read(content[:end])
    for length in [*range(8, end, 7), end - 1]:
        assert not is_read(content[:length]), length
    path.write_bytes(content[: end - 1])
    with pytest.raises(InputError, match="behind the end of the file"):
        GgufFile(path)


def test_random_damage_is_refused_or_read_and_never_ends_otherwise(tmp_path):
    path = written(tmp_path / "x.gguf")
    content, header = path.read_bytes(), min(entry.start for entry in GgufFile(path).entries.values())
    draw, read = random.Random(0), 0
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 8))):
            damaged[draw.randrange(4, header)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        read += is_read(bytes(damaged))
    assert 100 < read < 1900  # some damage, as of a letter in a name, cannot be seen


def test_a_vocabulary_of_common_size_is_read(tmp_path):
    tokens = b"".join(text(f"token{i}") for i in range(49_152))
    file = opened(tmp_path, build(array(8, 49_152, tokens)))
    assert len(file.metadata["list"]) == 49_152 and file.metadata["list"][-1] == "token49151"
