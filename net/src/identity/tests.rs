use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A directory that is gone when the test is.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hfcache-net-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_was_saved_is_loaded() {
    let dir = Dir::new("saved");
    let identity = Identity::new_cluster().unwrap();
    assert!(!Identity::exists(&dir.0));
    identity.save(&dir.0).unwrap();
    assert!(Identity::exists(&dir.0));
    let back = Identity::load(&dir.0).unwrap();
    assert_eq!((back.cluster, back.node), (identity.cluster, NodeId(1)));
    assert_eq!(back.ca_fingerprint(), identity.ca_fingerprint());
    assert_eq!(back.gossip_key, identity.gossip_key);
    assert!(back.can_issue());
    for (name, mode) in [("node.key", 0o600), ("ca.key", 0o600), ("gossip.key", 0o600), ("ca.crt", 0o644)] {
        assert_eq!(fs::metadata(dir.0.join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    // Without the CA key a node still is who it is; it only admits no one.
    fs::remove_file(dir.0.join("ca.key")).unwrap();
    let back = Identity::load(&dir.0).unwrap();
    assert_eq!(back.issue(NodeId(2), back.key.public()).unwrap_err().kind(), Kind::NotSupported);
}

#[test]
fn a_missing_or_torn_file_is_named_with_the_way_back() {
    let dir = Dir::new("torn");
    let identity = Identity::new_cluster().unwrap();
    for name in ["ca.crt", "node.crt", "node.key", "ca.key", "gossip.key", "cluster.toml"] {
        identity.save(&dir.0).unwrap();
        let path = dir.0.join(name);
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 5] {
            fs::write(&path, &whole[..cut]).unwrap();
            let e = Identity::load(&dir.0).unwrap_err();
            let said = e.to_string();
            assert!(said.contains(path.to_str().unwrap()), "{name} cut to {cut}: {said}");
            assert!(matches!(e.kind(), Kind::Corrupt | Kind::Version), "{name} cut to {cut}: {said}");
        }
        fs::remove_file(&path).unwrap();
        if name != "ca.key" {
            let e = Identity::load(&dir.0).unwrap_err();
            assert_eq!(e.kind(), Kind::NotFound);
            assert!(e.to_string().contains("is missing; "), "{e}");
        }
    }
}

#[test]
fn files_of_another_cluster_are_refused() {
    let (dir, other) = (Dir::new("own"), Dir::new("other"));
    Identity::new_cluster().unwrap().save(&other.0).unwrap();
    for name in ["ca.crt", "node.crt", "node.key", "ca.key", "cluster.toml"] {
        Identity::new_cluster().unwrap().save(&dir.0).unwrap();
        fs::copy(other.0.join(name), dir.0.join(name)).unwrap();
        assert_eq!(Identity::load(&dir.0).unwrap_err().kind(), Kind::Corrupt, "{name}");
    }
}

#[test]
fn a_newer_format_is_refused_as_such() {
    let dir = Dir::new("newer");
    Identity::new_cluster().unwrap().save(&dir.0).unwrap();
    let path = dir.0.join("cluster.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("version = 1", "version = 2\nmore = true")).unwrap();
    let e = Identity::load(&dir.0).unwrap_err();
    assert_eq!(e.kind(), Kind::Version);
    assert!(e.to_string().contains("newer"), "{e}");
}

#[test]
fn a_certificate_names_its_node_and_no_other_ca_made_it() {
    let one = Identity::new_cluster().unwrap();
    let key = NodeKey::generate().unwrap();
    let cert = one.issue(NodeId(7), key.public()).unwrap();
    assert_eq!(tls::verify_issued(&cert, one.ca_cert()).unwrap(), (NodeId(7), one.cluster()));
    let two = Identity::new_cluster().unwrap();
    assert_eq!(tls::verify_issued(&cert, two.ca_cert()).unwrap_err().kind(), Kind::Unauthorized);
    assert_eq!(one.issue(NodeId(7), &[4; 10]).unwrap_err().kind(), Kind::Invalid);
    // A CA certificate is nobody's node certificate.
    assert!(tls::verify_issued(one.ca_cert(), one.ca_cert()).is_err());
}

#[test]
fn the_generation_grows_and_survives_damage() {
    let dir = Dir::new("generation");
    let first = next_generation(&dir.0).unwrap();
    let second = next_generation(&dir.0).unwrap();
    assert!(second > first);
    fs::write(dir.0.join("generation"), "99999999999999\n").unwrap();
    assert_eq!(next_generation(&dir.0).unwrap(), 100_000_000_000_000);
    fs::write(dir.0.join("generation"), "torn").unwrap();
    assert!(next_generation(&dir.0).unwrap() > 1_700_000_000);
}

#[test]
fn a_node_key_is_made_once() {
    let dir = Dir::new("key");
    let key = NodeKey::load_or_create(&dir.0).unwrap();
    assert_eq!(NodeKey::load_or_create(&dir.0).unwrap().hash(), key.hash());
    fs::write(dir.0.join("node.key"), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        .unwrap();
    assert_eq!(NodeKey::load_or_create(&dir.0).unwrap_err().kind(), Kind::Corrupt);
}
