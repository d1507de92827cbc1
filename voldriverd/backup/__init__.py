"""The repository: how backups lie in a target. Version 1.

    voldriver.json                        what this place is; written once, by whoever comes first
    volumes/<volume uuid>/
        chunks/<2 hex digits>/<64>        a piece of data, under its own name, which begins with those two digits
        backups/<backup uuid>             a manifest: where it is, there is the backup
        writing/<backup uuid>             a mark that somebody writes here; empty
        pruning/<uuid>                    a mark that somebody deletes chunks here; empty

Whatever has another name belongs to nobody and is not looked at; in a directory, `.<name>.<16 hex digits>.part` is
what a write that broke off has left. UUIDs are in lower case with hyphens. One folder for each volume, and nobody but
the host that has the volume writes backups into it: hosts that share a bucket never wait for each other.

*voldriver.json* is a JSON object: `format` (1), `uuid`, `encryption`, and `check`, the BLAKE2b hash of 32 bytes, in
hex, of the other fields as JSON with sorted names and without spaces. A `format` above 1 is refused, and nothing is
written. `encryption` is null or an object: `cipher` "AES-256-GCM", `kdf` "scrypt" with `salt` (hex), `n`, `r`, `p`,
and `key` (hex): a nonce of 12 bytes, then the master key of 32 bytes sealed with the 32 bytes that scrypt makes of
the passphrase (UTF-8), with "voldriver master key <uuid>" as associated data. *Sealed* is: encrypted by AES-256-GCM,
the tag of 16 bytes at the end.

*A chunk* is named by the BLAKE2b hash of 32 bytes (`b2sum -l 256`) of its content, in hex, keyed with the volume's
hash key if the repository is encrypted. The object is one zstd frame (RFC 8878) that tells the length of the content
or, if encrypted, a nonce of 12 bytes and that frame, sealed with the chunk's name as associated data. The keys of a
volume are HKDF-SHA256 of the master key, without salt, 32 bytes each, `info` "hash <volume uuid>" or
"seal <volume uuid>". A chunk holds 1 byte to 4 MiB, and always the same under its name; it is written whole or not
at all.

*A manifest* is JSON in one zstd frame with a checksum; if encrypted, sealed in the same way with
"manifest <backup uuid>" as associated data. It is written after everything that it names is durable. Its fields are
those of `manifest.Manifest`, with `format` (1) for the version of all this, and `removed`; `manifest.Body` stands
under `body`. The *body* is what the contents of its chunks are one after the other, `content_bytes` long, and
`format` in `body` says what that is:

- `btrfs`: a stream as `btrfs send` writes it, whole, or an increment on the backup `parent`.
- `tar`: an archive that GNU tar reads; always whole (`parent` is null), sharing chunks with earlier ones.
- `blocks`: the data of the ranges of an image, one after the other; the image has `image_bytes`. An increment on
  `parent` has the ranges that differ from it.

*The lists* of a backup are lines of JSON in chunks of their own, which `lists` in `body` names, as [name, length] in
their order. No line crosses from one chunk to the next; the lines are ASCII. Each is an object with one field, whose
value is an array of rows; the rows of all lines with the same field, in their order, are the list of that name:

- `chunks`: [name, length] of each chunk of the body.
- `ranges`: of blocks: [offset, length] in bytes of each piece of the body in the image; they ascend.
- `holes`: of blocks: [offset, length] of what reads as zeros; they ascend. What is in neither list is a hole in a
  whole one, and as in the parent in an increment.
- `index`: of tar: [path, where its headers begin in the body, bytes up to the next member]; bytes of a path that are
  no UTF-8 stand as U+DC80 to U+DCFF.

*Writing* begins with the mark in `writing`, which is made anew every ten minutes. Then, as long as a mark in
`pruning` is younger than 15 minutes (by the clock of the target, as the writer's own mark tells it), the writer waits.
It may rely on a chunk that is there and that a manifest names, or that is younger than half of the shortest grace
period, which is a day. It does not build on a backup that is removed. After the manifest is written the writer looks
for its mark: if that has gone, it deletes the manifest again and has failed; else it deletes the mark. One that is
older than the grace period is of the dead.

*Removal* writes the manifest again with `removed` set: nobody lists it or builds on it any more. It is deleted when
no manifest names it as `parent`. *Prune* deletes the chunks that no manifest names and that are older than the grace
period. Both delete only after making a mark in `pruning` (what is how old is counted from the time of that, by the
clock of the target) and deleting the marks of the dead, if there is then no other mark in `writing` and no manifest
that has not been looked at; a mark is used for one minute, and stays if deleting failed. A volume with a manifest that
cannot be read is left as it is, since that may name anything.
"""
