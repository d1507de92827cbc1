"""The repository: how backups lie in a target. Version 1.

    voldriver.json                        what this place is; written once, by whoever comes first
    volumes/<volume uuid>/
        chunks/<2 hex digits>/<64>        a piece of data, under its own name
        backups/<backup uuid>             a manifest: where it is, there is the backup
        writing/<backup uuid>             a mark that somebody writes here; empty

One folder for each volume, and nobody but the host that has the volume writes backups into it: hosts that share a
bucket never wait for each other.

*voldriver.json* is JSON: `format` (1), `uuid`, and `encryption`, null or an object: `cipher` "AES-256-GCM", `kdf`
"scrypt" with `salt` (hex), `n`, `r`, `p`, and `key` (hex): nonce of 12 bytes, then the sealed master key of 32 bytes
with tag, sealed with the key that scrypt makes from the passphrase, and "voldriver master key" as associated data.
A `format` above 1 is refused, and nothing is written.

*A chunk* is named by the BLAKE2b hash of 32 bytes (`b2sum -l 256`) of its content, keyed with the volume's hash key
if the repository is encrypted. The object is a zstd frame (RFC 8878) of the content or, encrypted, a nonce of 12
bytes and the AES-256-GCM sealing of that frame with the chunk's name as associated data. The keys of a volume are
HKDF-SHA256 of the master key, 32 bytes each, `info` = "hash " or "seal " and the volume's uuid. A chunk holds 4 MiB
at most, and always the same under its name; it is written whole or not at all.

*A manifest* is JSON in a zstd frame, sealed in the same way with "manifest <backup uuid>" as associated data. It is
written after everything that it names. Its fields are those of `manifest.Manifest`. Its `chunks` are ordered;
their contents one after the other are the backup's *body* of the format that `format` tells:

- `btrfs`: a stream as `btrfs send` writes it, whole, or an increment on the backup `parent`.
- `tar`: an archive that GNU tar reads; always whole (`parent` is null), sharing chunks with earlier ones.
- `blocks`: the data of the ranges of an image, ascending; `ranges` lists [offset, length] of each in bytes,
  `holes` those that read as zeros, and the image has `image_bytes`. An increment on `parent` has the ranges that
  differ from it. What is in neither list of the whole one is a hole.

The lists can be long, so they stand in chunks of their own: `lists` in the manifest names these, whose contents one
after the other are JSON with `chunks` ([name, length] of each), `ranges`, `holes` and `index`. `index` is of tar
only: [path, where its headers begin in the body, bytes up to the next member].

*Removal* deletes the manifest. A manifest that others name as `parent` is written again with `removed` set instead,
and goes with the last of them. Chunks that no manifest names go with `prune`, when they are older than the grace
period and no mark in `writing` is younger than it: who writes may rely on a chunk that a manifest names, and on one
younger than half of that period.
"""
