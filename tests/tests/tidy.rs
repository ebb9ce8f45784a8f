//! Holds the tree to its own rules: who may depend on whom, short files, reasons for dependencies, promises
//! with tests.

use hfcache_tests::binary::workspace;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files should stay under 600 lines; this is where the test's patience ends.
const LINES_MAX: usize = 650;
/// A line with this mark may hold a banned word.
const EXCEPTION: &str = "tidy-allow:";
/// The workspace's own crates start with this; the binary is called `hfcache` alone.
const OURS: &str = "hfcache";

/// All files of the work tree with one of these extensions, without what is built or hidden.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![workspace().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("list a directory").map(|e| e.expect("list a directory")) {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if entry.file_type().expect("look at an entry").is_dir() {
                if name != "target" && name != "__pycache__" && (!name.starts_with('.') || name == ".ci") {
                    todo.push(path);
                }
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn short(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).display().to_string()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("read {}: {why}", short(path)))
}

/// Each of our packages with the names of everything it depends on, for building or for testing.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .expect("run cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let name = |v: &Value| v["name"].as_str().expect("packages have names").to_owned();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    list(&metadata["packages"])
        .iter()
        .map(|p| (name(p), list(&p["dependencies"]).iter().map(name).collect()))
        .collect()
}

fn fail_with(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// The picture of the design: siblings never import each other, base imports none, node wires all.
fn may_depend(from: &str, on: &str) -> bool {
    let test_crates = ["hfcache-tests", "hfcache-jepsen"];
    match from {
        "hfcache-jepsen" => true,
        "hfcache-tests" => on != "hfcache-jepsen",
        "hfcache" => !test_crates.contains(&on),
        "hfcache-net" | "hfcache-raft" | "hfcache-storage" | "hfcache-fuse" | "hfcache-hub" => {
            on == "hfcache-base"
        }
        _ => false,
    }
}

#[test]
fn crates_depend_only_as_the_design_draws_it() {
    let packages = packages();
    assert!(packages.contains_key("hfcache-base"), "{:?}", packages.keys());
    let mut wrong = Vec::new();
    for (from, dependencies) in &packages {
        for on in dependencies.iter().filter(|d| d.starts_with(OURS)) {
            if !may_depend(from, on) {
                wrong.push(format!("{from} may not depend on {on}: the parts meet in base::seam only"));
            }
        }
    }
    fail_with(wrong);
}

#[test]
fn the_edges_that_are_forbidden_would_be_found() {
    assert!(may_depend("hfcache", "hfcache-fuse") && may_depend("hfcache-raft", "hfcache-base"));
    assert!(!may_depend("hfcache-base", "hfcache-net") && !may_depend("hfcache-fuse", "hfcache-raft"));
    assert!(!may_depend("hfcache", "hfcache-tests") && !may_depend("hfcache-new", "hfcache-base"));
}

#[test]
fn every_dependency_has_its_reason() {
    let reasons: BTreeMap<String, String> = text(&workspace().join("deny.toml"))
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.split_once(": "))
        .filter(|(name, _)| {
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
        })
        .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        .collect();
    let used: BTreeSet<String> =
        packages().into_values().flatten().filter(|name| !name.starts_with(OURS)).collect();
    let mut wrong = Vec::new();
    for name in used.iter().filter(|name| !reasons.contains_key(*name)) {
        wrong.push(format!("deny.toml has no line `# {name}: what it is for`"));
    }
    for name in reasons.keys().filter(|name| !used.contains(*name)) {
        wrong.push(format!("deny.toml gives a reason for {name}, which no crate depends on"));
    }
    fail_with(wrong);
}

#[test]
fn source_files_are_short() {
    let mut wrong = Vec::new();
    for path in files(&["rs", "py", "sh"]) {
        let lines = text(&path).lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{}: {lines} lines; one file has one subject, in about 600", short(&path)));
        }
    }
    fail_with(wrong);
}

#[test]
fn nothing_is_left_for_later_and_words_are_ours() {
    // Put together here, so that this file does not find itself.
    let calls = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];
    let words = [concat!("mas", "ter"), concat!("sla", "ve")];
    let mut wrong = Vec::new();
    for path in files(&["rs"]) {
        for (i, line) in text(&path).lines().enumerate().filter(|(_, l)| !l.contains(EXCEPTION)) {
            let mut lower = line.to_lowercase();
            // The kernel's list of mounts has a field of that name, with a number.
            for digit in 0..10 {
                lower = lower.replace(&format!("{}:{digit}", words[0]), "");
            }
            let mut split = lower.split(|c: char| !c.is_alphanumeric());
            if let Some(word) = split.find(|w| words.contains(w)) {
                wrong.push(format!("{}:{}: the word {word} is banned", short(&path), i + 1));
            }
            if let Some(call) = calls.iter().find(|c| line.contains(*c)) {
                wrong.push(format!("{}:{}: {call}…) is no code", short(&path), i + 1));
            }
        }
    }
    fail_with(wrong);
}

#[test]
fn every_promise_names_tests_that_exist() {
    let page = workspace().join("docs/semantics.md");
    let mut wrong = Vec::new();
    let mut rows = 0;
    for (i, line) in text(&page).lines().enumerate() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.len() < 4 || cells[1].starts_with("---") || cells[1] == "promise" {
            continue;
        }
        rows += 1;
        let named: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            wrong.push(format!("docs/semantics.md:{}: a promise without a test", i + 1));
        }
        for test in named {
            let found = test.split_once("::").is_some_and(|(file, name)| {
                let source = fs::read_to_string(workspace().join(file)).unwrap_or_default();
                source.contains(&format!("fn {name}(")) || source.contains(&format!("run(\"{name}\""))
            });
            if !found {
                wrong.push(format!("docs/semantics.md:{}: there is no test {test}", i + 1));
            }
        }
    }
    assert!(rows > 5, "the promises of docs/semantics.md were not found");
    fail_with(wrong);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for path in files(&["md"]) {
        for link in text(&path).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.contains(' ') {
                continue;
            }
            if !path.parent().expect("a file has a directory").join(file).exists() {
                wrong.push(format!("{}: {file} does not exist", short(&path)));
            }
        }
    }
    fail_with(wrong);
}
