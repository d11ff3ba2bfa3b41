"""Makes the first inputs of the fuzz targets from the small sample databases: `python converters/ocdbt/fuzz/seed.py`.

Uncompressed pieces stand as bodies (the targets put them back into an envelope), so that a fuzzer's changes get past the checksum;
`src/fuzzing.rs` describes the archive of the `database` target.
"""

import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parents[2] / "fixtures" / "ocdbt"
KINDS = {0x0CDB3A2A: (1, "manifest"), 0x0CDB20DE: (2, "node"), 0x0CDB1234: (3, "version_node")}
DATABASES = ["tiny", "raw_pin/binkeys", "raw_pin/noprefix", "raw_pin/emptied", "raw_pin/only_initial", "raw_pin/inline0"]


def pieces(data: bytes):
    """Cuts a file into (kind, bytes): envelopes without compression as bodies, all else as it is."""
    plain, at = b"", 0
    while at < len(data):
        magic = struct.unpack(">I", data[at:at + 4].rjust(4, b"\0"))[0]
        length = struct.unpack("<Q", data[at + 4:at + 12].ljust(8, b"\0"))[0]
        if magic in KINDS and 18 <= length <= len(data) - at and data[at + 12:at + 14] == b"\0\0":
            if plain:
                yield 0, plain
            plain = b""
            yield KINDS[magic][0], data[at + 14:at + length - 4]
            at += length
        else:
            plain += data[at:at + 1]
            at += 1
    if plain:
        yield 0, plain


def main() -> None:
    names = {kind: name for kind, name in KINDS.values()}
    bodies: dict[str, list[bytes]] = {name: [] for name in [*names.values(), "database"]}
    for database in DATABASES:
        root, archive = FIXTURES / database, b""
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            for kind, part in pieces(path.read_bytes()):
                if kind and part not in bodies[names[kind]]:
                    bodies[names[kind]].append(part)
                name = str(path.relative_to(root)).encode()
                for at in range(0, len(part), 65535):
                    cut = part[at:at + 65535]
                    archive += struct.pack("<BBH", kind, len(name), len(cut)) + name + cut
        if len(archive) < 40_000:
            bodies["database"].append(archive)
    for target, inputs in bodies.items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for index, body in enumerate(inputs[:40]):
            (folder / f"sample_{index:02}").write_bytes(body)
        print(target, len(inputs), sum(map(len, inputs)), "bytes")


if __name__ == "__main__":
    main()
