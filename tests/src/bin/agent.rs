//! A process that holds files open for a test. See `hfcache_tests::agent`.

fn main() -> std::io::Result<()> {
    hfcache_tests::agent::serve()
}
