//! A small but valid model in the true cache layout: a Llama of four layers with random weights.

use super::cache::Found;
use anyhow::{Context, Result};
use hfcache_base::placement::mix;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const HIDDEN: u64 = 512;
const INNER: u64 = 1_376;
const LAYERS: u64 = 4;
const HEADS: u64 = 8;
const VOCABULARY: u64 = 8_192;
/// 1.0 as a 16-bit float.
const ONE: u16 = 0x3c00;

/// Lowercase hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Makes the model as a cache in `dir`.
pub(super) fn generate(dir: &Path) -> Result<Found> {
    let files = [
        ("model.safetensors", safetensors(7), true),
        ("config.json", pretty(&config())?, false),
        ("generation_config.json", pretty(&json!({"do_sample": false, "pad_token_id": 0}))?, false),
        ("tokenizer.json", pretty(&tokenizer())?, false),
        ("tokenizer_config.json", pretty(&tokenizer_config())?, false),
    ];
    repository(dir, "models--demo--tiny", &files)
}

/// Makes what the story writes later: another, smaller repository.
pub(super) fn generate_update(dir: &Path) -> Result<Found> {
    let mut weights = safetensors(8);
    weights.truncate(8 << 20);
    let files = [
        ("train.bin", weights, true),
        ("README.md", b"# Written while node 2 was dead\n".to_vec(), false),
    ];
    repository(dir, "datasets--demo--late", &files)
}

/// Blobs by their hash, a snapshot of relative links, a ref.
fn repository(dir: &Path, name: &str, files: &[(&str, Vec<u8>, bool)]) -> Result<Found> {
    let root = dir.join(name);
    let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    let blobs: Vec<(String, &str, &[u8])> = files
        .iter()
        .map(|(name, bytes, large)| {
            let blob = if *large { hex(&Sha256::digest(bytes)) } else { git_sha1(bytes) };
            digest.update(blob.as_bytes());
            (blob, *name, bytes.as_slice())
        })
        .collect();
    let commit = hex(digest.finish().as_ref());
    let write = || -> std::io::Result<()> {
        let snapshot = root.join("snapshots").join(&commit);
        for part in [root.join("blobs"), root.join("refs"), snapshot.clone()] {
            fs::create_dir_all(part)?;
        }
        for (blob, name, bytes) in &blobs {
            fs::write(root.join("blobs").join(blob), bytes)?;
            symlink(Path::new("../../blobs").join(blob), snapshot.join(name))?;
        }
        fs::write(root.join("refs/main"), &commit)
    };
    write().with_context(|| format!("write {}", root.display()))?;
    Ok(Found { root: dir.into(), entries: vec![name.into()] })
}

/// What git calls a file of these bytes, and the Hub a small one.
fn git_sha1(bytes: &[u8]) -> String {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(format!("blob {}\0", bytes.len()).as_bytes());
    digest.update(bytes);
    hex(digest.finish().as_ref())
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value)?)
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY,
        "max_position_embeddings": 1_024, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    })
}

fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let words = (special.len() as u64..VOCABULARY).map(|i| format!("word{i}"));
    let vocabulary: Map<String, Value> =
        special.iter().map(|s| (*s).to_owned()).chain(words).zip(0u64..).map(|(w, i)| (w, i.into())).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, s)| {
            json!({"id": i, "content": s, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    })
}

fn tokenizer_config() -> Value {
    json!({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>",
           "eos_token": "</s>", "model_max_length": 1_024})
}

fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[u64]| all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{projection}.weight"), &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj.weight", &[INNER, HIDDEN]);
        add("mlp.up_proj.weight", &[INNER, HIDDEN]);
        add("mlp.down_proj.weight", &[HIDDEN, INNER]);
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
    }
    all.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    all
}

/// Eight bytes of length, a JSON header padded with spaces to a multiple of eight, the weights.
fn safetensors(seed: u64) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, shape) in tensors() {
        let start = end;
        end += shape.iter().product::<u64>() * 2;
        header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = Vec::with_capacity(8 + text.len() + end as usize);
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
    for (at, (_, shape)) in (0u64..).zip(tensors()) {
        let count = shape.iter().product::<u64>();
        if shape.len() == 1 {
            out.extend(std::iter::repeat_n(ONE.to_le_bytes(), count as usize).flatten());
            continue;
        }
        // Four weights of a 64-bit hash: a sign, an exponent of about 1/64, a mantissa.
        for i in 0..count / 4 {
            let bits = mix(seed << 56 | at << 40 | i);
            for part in 0..4 {
                let bits = (bits >> (16 * part)) as u16;
                let weight = (bits & 0x8000) | (8 + (bits >> 10 & 1)) << 10 | (bits & 0x03ff);
                out.extend(weight.to_le_bytes());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_safetensors_file_is_valid() {
        let bytes = safetensors(1);
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(header_len % 8, 0);
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        assert_eq!(bytes[8], b'{');
        let mut spans: Vec<(u64, u64)> = Vec::new();
        for (name, tensor) in header.iter().filter(|(n, _)| *n != "__metadata__") {
            let shape: u64 = tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
            let [start, end] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap());
            assert_eq!(end - start, shape * 2, "{name}");
            spans.push((start, end));
        }
        // No holes, no overlap, nothing behind the last one: the format's own rules.
        spans.sort();
        assert_eq!(spans[0].0, 0);
        assert!(spans.windows(2).all(|w| w[0].1 == w[1].0));
        assert_eq!(8 + header_len as u64 + spans.last().unwrap().1, bytes.len() as u64);
        assert!((30 << 20..60 << 20).contains(&bytes.len()), "{}", bytes.len());
        // Finite and not all the same.
        let weights: Vec<u16> =
            bytes[8 + header_len..].chunks(2).take(4_096).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        assert!(weights.iter().all(|w| w & 0x7c00 != 0x7c00));
        assert!(weights.iter().collect::<std::collections::BTreeSet<_>>().len() > 1_000);
    }

    #[test]
    fn blobs_are_named_as_the_hub_names_them() {
        assert_eq!(git_sha1(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        let dir = crate::data::tests::TempDir::new();
        let found = generate(dir.path()).unwrap();
        let repo = dir.path().join(&found.entries[0]);
        let commit = fs::read_to_string(repo.join("refs/main")).unwrap();
        assert_eq!(commit.len(), 40);
        let snapshot = repo.join("snapshots").join(commit);
        let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
        let bytes = fs::read(snapshot.join("model.safetensors")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(hex(&Sha256::digest(bytes))));
        let tokenizer: Value = serde_json::from_slice(&fs::read(snapshot.join("tokenizer.json")).unwrap()).unwrap();
        assert_eq!(tokenizer["model"]["vocab"].as_object().unwrap().len() as u64, VOCABULARY);
        assert!(super::super::cache::find(dir.path()).is_ok());
    }
}
