//! Downloads files of a model with the Rust client of the Hub: `hfcache-test-hf-hub old|new OWNER/NAME FILE...`, from
//! `HF_ENDPOINT` into `HF_HUB_CACHE`. Prints the paths as a JSON list.

use std::error::Error;
use std::path::PathBuf;

type Paths = Result<Vec<PathBuf>, Box<dyn Error>>;

fn old(repo: &str, files: &[String], endpoint: String, cache: PathBuf) -> Paths {
    use hf_hub_old::api::sync::ApiBuilder;
    let api = ApiBuilder::from_env().with_endpoint(endpoint).with_cache_dir(cache).with_progress(false);
    let model = api.build()?.model(repo.to_owned());
    files.iter().map(|f| Ok(model.get(f)?)).collect()
}

fn new(repo: &str, files: &[String], endpoint: String, cache: PathBuf) -> Paths {
    let runtime = tokio::runtime::Runtime::new()?;
    let client = hf_hub::HFClient::builder().endpoint(endpoint).cache_dir(cache).build()?;
    let (owner, name) = repo.split_once('/').ok_or("a repository is OWNER/NAME")?;
    let model = client.model(owner, name);
    let download = |file: &String| runtime.block_on(model.download_file().filename(file).send());
    files.iter().map(|f| Ok(download(f)?)).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [version, repo, files @ ..] = arguments.as_slice() else {
        return Err("old|new OWNER/NAME FILE...".into());
    };
    let endpoint = std::env::var("HF_ENDPOINT")?;
    let cache = PathBuf::from(std::env::var("HF_HUB_CACHE")?);
    let paths = match version.as_str() {
        "old" => old(repo, files, endpoint, cache)?,
        "new" => new(repo, files, endpoint, cache)?,
        other => return Err(format!("no such version: {other}").into()),
    };
    println!("{}", serde_json::to_string(&paths)?);
    Ok(())
}
