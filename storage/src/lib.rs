//! Bytes on disks: codec, shard files, hot copies, fetch, repair and garbage collection.
