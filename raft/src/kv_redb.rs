//! [`kv`](crate::kv) on redb: one table of bytes, whose keys start with the number of the [`Table`].
//!
//! ```text
//! redb table "state":   [table: u8][key …]  →  value
//! ```

use crate::kv::{self, Table};
use hfcache_base::{Error, Kind, Result};
use redb::{ReadOnlyTable, ReadableTable, TableDefinition};
use std::ops::Bound;
use std::sync::Arc;

/// The only table of a state file.
pub const STATE: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("state");

/// Is shown pairs, full key and value, and may stop with an error.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'v;

/// An error of redb: damage, a full disk and other I/O keep their meaning.
pub(crate) fn failed(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(e) => Error::io(e),
        redb::Error::Corrupted(why) => Error::new(Kind::Corrupt, why),
        other => Error::new(Kind::Io, "use database").with_source(other),
    }
}

fn full_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table as u8);
    full.extend_from_slice(key);
    full
}

fn get<T: ReadableTable<&'static [u8], &'static [u8]>>(
    rows: &T,
    table: Table,
    key: &[u8],
) -> Result<Option<Vec<u8>>> {
    let found = rows.get(full_key(table, key).as_slice()).map_err(failed)?;
    Ok(found.map(|value| value.value().to_vec()))
}

fn scan<T: ReadableTable<&'static [u8], &'static [u8]>>(
    rows: &T,
    table: Table,
    from: Bound<&[u8]>,
    to: Bound<&[u8]>,
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<()> {
    let from = match from {
        Bound::Included(key) => Bound::Included(full_key(table, key)),
        Bound::Excluded(key) => Bound::Excluded(full_key(table, key)),
        Bound::Unbounded => Bound::Included(vec![table as u8]),
    };
    let to = match to {
        Bound::Included(key) => Bound::Included(full_key(table, key)),
        Bound::Excluded(key) => Bound::Excluded(full_key(table, key)),
        Bound::Unbounded => Bound::Excluded(vec![table as u8 + 1]),
    };
    if is_empty(&from, &to) {
        return Ok(());
    }
    let range: (Bound<&[u8]>, Bound<&[u8]>) =
        (from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice));
    for row in rows.range::<&[u8]>(range).map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        let key = key.value();
        if !visit(key.get(1..).unwrap_or_default(), value.value()) {
            break;
        }
    }
    Ok(())
}

/// Whether a range can hold nothing: a B-tree may refuse one whose start is behind its end.
fn is_empty(from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    match (from, to) {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Excluded(b))
        | (Bound::Excluded(a), Bound::Included(b)) => a >= b,
        _ => false,
    }
}

/// One state of the file. It pins pages while it lives: never keep it across an `await`. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    rows: Arc<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl Reader {
    /// The newest committed state.
    ///
    /// # Errors
    /// Only if the file is damaged or cannot be read.
    pub fn new(db: &redb::Database) -> Result<Self> {
        use redb::ReadableDatabase;
        let txn = db.begin_read().map_err(failed)?;
        Ok(Self { rows: Arc::new(txn.open_table(STATE).map_err(failed)?) })
    }

    /// Shows every pair of every table, with full keys, in order.
    ///
    /// # Errors
    /// Whatever the file or `visit` says.
    pub fn all(&self, visit: &mut Visit<'_>) -> Result<()> {
        for row in self.rows.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            visit(key.value(), value.value())?;
        }
        Ok(())
    }
}

impl kv::Read for Reader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        get(&*self.rows, table, key)
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        scan(&*self.rows, table, from, to, visit)
    }
}

/// The table of an open write transaction; the caller commits the transaction after dropping this.
pub struct Writer<'t> {
    rows: redb::Table<'t, &'static [u8], &'static [u8]>,
}

impl<'t> Writer<'t> {
    /// Opens the table, making it if it is not there.
    ///
    /// # Errors
    /// Only if the file is damaged or cannot be read.
    pub fn new(txn: &'t redb::WriteTransaction) -> Result<Self> {
        Ok(Self { rows: txn.open_table(STATE).map_err(failed)? })
    }

    /// Sets a pair by its full key, as [`Reader::all`] shows it.
    ///
    /// # Errors
    /// Only if the file fails.
    pub fn put_full(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.rows.insert(key, value).map_err(failed)?;
        Ok(())
    }
}

impl kv::Read for Writer<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        get(&self.rows, table, key)
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        scan(&self.rows, table, from, to, visit)
    }
}

impl kv::Write for Writer<'_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.put_full(&full_key(table, key), value)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.rows.remove(full_key(table, key).as_slice()).map_err(failed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Read, Write};

    fn memory() -> redb::Database {
        redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap()
    }

    #[test]
    fn tables_do_not_meet_and_ranges_keep_their_bounds() {
        let db = memory();
        let txn = db.begin_write().unwrap();
        {
            let mut rows = Writer::new(&txn).unwrap();
            for key in [&b""[..], b"a", b"ab", b"b"] {
                rows.put(Table::Inode, key, key).unwrap();
            }
            rows.put(Table::Single, &[255, 255], b"low").unwrap();
            rows.put(Table::Dentry, b"", b"high").unwrap();
            rows.put(Table::Inode, b"x", b"x").unwrap();
            rows.delete(Table::Inode, b"x").unwrap();
            rows.delete(Table::Inode, b"never").unwrap();
        }
        txn.commit().unwrap();
        let reader = Reader::new(&db).unwrap();
        let keys = |from: Bound<&[u8]>, to: Bound<&[u8]>| {
            let mut seen = Vec::new();
            reader
                .scan(Table::Inode, from, to, &mut |k, v| {
                    assert_eq!(k, v);
                    seen.push(k.to_vec());
                    true
                })
                .unwrap();
            seen
        };
        let all = [&b""[..], b"a", b"ab", b"b"].map(<[u8]>::to_vec).to_vec();
        assert_eq!(keys(Bound::Unbounded, Bound::Unbounded), all);
        assert_eq!(keys(Bound::Excluded(b"a"), Bound::Included(b"b")), all[2..]);
        assert_eq!(keys(Bound::Included(b"a"), Bound::Excluded(b"ab")), all[1..2]);
        assert!(keys(Bound::Included(b"b"), Bound::Excluded(b"a")).is_empty());
        assert!(keys(Bound::Excluded(b"a"), Bound::Excluded(b"a")).is_empty());
        assert_eq!(reader.get(Table::Inode, b"x").unwrap(), None);
        assert_eq!(reader.get(Table::Single, &[255, 255]).unwrap().unwrap(), b"low");
    }

    #[test]
    fn a_scan_stops_when_told() {
        let db = memory();
        let txn = db.begin_write().unwrap();
        {
            let mut rows = Writer::new(&txn).unwrap();
            for n in 0..10u8 {
                rows.put(Table::Chunk, &[n], &[n]).unwrap();
            }
        }
        txn.commit().unwrap();
        let mut seen = 0;
        let reader = Reader::new(&db).unwrap();
        reader
            .scan(Table::Chunk, Bound::Unbounded, Bound::Unbounded, &mut |_, _| {
                seen += 1;
                seen < 3
            })
            .unwrap();
        assert_eq!(seen, 3);
    }
}
