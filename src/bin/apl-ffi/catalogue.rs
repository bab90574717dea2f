//! Models by name: where they are on this machine, or on the hub.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::Args;
use hf_hub::Cache;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use serde_json::json;

use crate::terminal::{say, table};
use crate::{Failure, Outcome, shell};

/// List the models that have a short name, with their size and licence.
#[derive(Args)]
pub struct Arguments {
    /// As JSON; docs/json.md says what its keys mean.
    #[arg(long)]
    json: bool,
}

/// A model of the hub that has a short name.
struct Entry {
    name: &'static str,
    repository: &'static str,
    /// Billions of parameters.
    billions: f64,
    licence: &'static str,
    /// Whether its owner wants to be asked first.
    gated: bool,
}

const fn entry(
    name: &'static str,
    repository: &'static str,
    billions: f64,
    licence: &'static str,
    gated: bool,
) -> Entry {
    Entry {
        name,
        repository,
        billions,
        licence,
        gated,
    }
}

const ENTRIES: [Entry; 19] = [
    entry(
        "tinyllama",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        1.1,
        "Apache-2.0",
        false,
    ),
    entry(
        "mistral-7b",
        "mistralai/Mistral-7B-v0.1",
        7.2,
        "Apache-2.0",
        true,
    ),
    entry(
        "mistral-7b-instruct",
        "mistralai/Mistral-7B-Instruct-v0.2",
        7.2,
        "Apache-2.0",
        true,
    ),
    entry("gemma-2b", "google/gemma-2b", 2.5, "Gemma", true),
    entry("gemma-2b-it", "google/gemma-2b-it", 2.5, "Gemma", true),
    entry("gemma-7b", "google/gemma-7b", 8.5, "Gemma", true),
    entry("gemma2-2b", "google/gemma-2-2b", 2.6, "Gemma", true),
    entry("gemma2-2b-it", "google/gemma-2-2b-it", 2.6, "Gemma", true),
    entry(
        "llama2-7b",
        "meta-llama/Llama-2-7b-hf",
        6.7,
        "Llama 2",
        true,
    ),
    entry(
        "llama2-7b-chat",
        "meta-llama/Llama-2-7b-chat-hf",
        6.7,
        "Llama 2",
        true,
    ),
    entry(
        "llama3-8b",
        "meta-llama/Meta-Llama-3-8B",
        8.0,
        "Llama 3",
        true,
    ),
    entry(
        "llama3.2-1b",
        "meta-llama/Llama-3.2-1B",
        1.2,
        "Llama 3.2",
        true,
    ),
    entry(
        "llama3.2-1b-instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        1.2,
        "Llama 3.2",
        true,
    ),
    entry(
        "codellama-7b",
        "codellama/CodeLlama-7b-hf",
        6.7,
        "Llama 2",
        false,
    ),
    entry(
        "qwen2.5-0.5b-instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        0.5,
        "Apache-2.0",
        false,
    ),
    entry(
        "qwen2.5-1.5b-instruct",
        "Qwen/Qwen2.5-1.5B-Instruct",
        1.5,
        "Apache-2.0",
        false,
    ),
    entry("qwen3-0.6b", "Qwen/Qwen3-0.6B", 0.6, "Apache-2.0", false),
    entry("qwen3-1.7b", "Qwen/Qwen3-1.7B", 1.7, "Apache-2.0", false),
    entry(
        "deepseek-r1-distill-llama-8b",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        8.0,
        "MIT",
        false,
    ),
];

/// `apl-ffi models`
pub fn run(arguments: &Arguments) -> Outcome {
    if arguments.json {
        let list: Vec<_> = ENTRIES
            .iter()
            .map(|e| json!({"name": e.name, "repository": e.repository, "billions": e.billions, "licence": e.licence, "gated": e.gated}))
            .collect();
        say!("{:#}", json!(list))?;
        return Ok(());
    }
    let mut rows = vec![
        ["name", "parameters", "licence", "gated", "repository"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(ENTRIES.iter().map(|e| {
        vec![
            e.name.to_owned(),
            format!("{:.1} billion", e.billions),
            e.licence.to_owned(),
            if e.gated { "yes" } else { "" }.to_owned(),
            e.repository.to_owned(),
        ]
    }));
    table(&rows)?;
    say!(
        "\nGated: accept the licence on the model's page and set HF_TOKEN. `demo` comes with this project."
    )?;
    Ok(())
}

/// The path of a model that is on this machine: a path, a name in a folder of models, or what was downloaded from the hub.
pub fn local(model: &str) -> Outcome<PathBuf> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok(path);
    }
    if let Some(found) = shipped(model) {
        return Ok(found);
    }
    let Some(repository) = repository(model) else {
        return Err(absent(model));
    };
    downloaded(repository).ok_or_else(|| match is_path(model) {
        true => absent(model),
        false => Failure::new(
            3,
            format!(
                "there is no model {model} here; convert it first: apl-ffi convert {}",
                shell::path(model)
            ),
        ),
    })
}

/// The folder or file of a source of `convert`, fetched from the hub if it is a name there.
pub fn fetched(source: &str) -> Outcome<PathBuf> {
    let path = PathBuf::from(source);
    if path.exists() {
        return Ok(path);
    }
    match repository(source) {
        // What was converted from it has its short name too.
        Some(repository) if !is_path(source) => download(repository),
        _ => shipped(source).ok_or_else(|| absent(source)),
    }
}

/// What [`local`] finds `path` by, which `source` was fetched to.
pub fn name_of_fetched(source: &str, path: &Path) -> String {
    let names = [Some(source), repository(source)];
    let mut names = names.into_iter().flatten();
    match names.find(|name| local(name).is_ok_and(|found| found == path)) {
        Some(name) => name.to_owned(),
        None => path.display().to_string(),
    }
}

const HUB: &str = "https://huggingface.co/";

/// The repository of a short name, an OWNER/NAME, or the address of one on the hub.
fn repository(name: &str) -> Option<&str> {
    if let Some(entry) = ENTRIES.iter().find(|e| e.name == name) {
        return Some(entry.repository);
    }
    let name = match name.strip_prefix(HUB) {
        Some(rest) => rest.trim_end_matches('/'),
        None => name,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_part =
        |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && part.chars().all(plain);
    let (owner, rest) = name.split_once('/')?;
    (is_part(owner) && is_part(rest) && !is_file_name(rest)).then_some(name)
}

fn is_file_name(name: &str) -> bool {
    let endings = [".gguf", ".json", ".safetensors"];
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Whether a name rather means something on this machine.
fn is_path(name: &str) -> bool {
    let parent = Path::new(name).parent();
    let is_in_folder = parent.is_some_and(|p| !p.as_os_str().is_empty() && p.is_dir());
    !name.starts_with(HUB)
        && (is_in_folder
            || is_file_name(name)
            || name.starts_with(['.', '/', '~'])
            || name.ends_with('/')
            || name.contains('\\')
            || name.matches('/').count() > 1)
}

/// Nothing of that name is on this machine.
fn absent(name: &str) -> Failure {
    let more = if !is_path(name) {
        let folders: Vec<String> = folders().iter().map(|f| f.display().to_string()).collect();
        format!(
            ", no model of that name in {}, and no such short name (`apl-ffi models` lists them)",
            folders.join(", ")
        )
    } else if repository(name).is_some() {
        format!("; for OWNER/NAME on the hub give {HUB}{name}")
    } else {
        String::new()
    };
    Failure::new(3, format!("there is no folder or file {name} here{more}"))
}

/// Where models are looked for by name.
fn folders() -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    let up = |n: usize| program.as_deref().and_then(|p| p.ancestors().nth(n));
    let given = std::env::var_os("APL_FFI_MODELS").filter(|f| !f.is_empty());
    let folders = [
        given.map(PathBuf::from),
        Some(PathBuf::from("models")),
        // Installed, or as cargo builds it.
        up(2).map(|p| p.join("share/apl_ffi/models")),
        up(3).map(|p| p.join("models")),
    ];
    folders.into_iter().flatten().collect()
}

/// A model that comes with the project, or that was converted into a folder of models.
pub fn shipped(name: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains(['/', '\\']) {
        return None;
    }
    let mut paths = folders().into_iter().map(|f| f.join(name));
    paths.find(|p| p.is_dir())
}

/// Whether the cache of downloads has a place.
fn has_cache() -> bool {
    std::env::var_os("HF_HOME").is_some() || std::env::home_dir().is_some()
}

/// The folder of a repository in the cache of downloads, if something of its weights is there: opening it tells what is not.
fn downloaded(repository: &str) -> Option<PathBuf> {
    if !has_cache() {
        return None;
    }
    let cache = Cache::from_env().model(repository.to_owned());
    let folder = cache.get("config.json")?.parent()?.to_owned();
    let mut entries = folder.read_dir().ok()?.flatten();
    entries
        .any(|e| e.path().extension().is_some_and(|e| e == "safetensors"))
        .then_some(folder)
}

/// Fetches what a model needs; files that are here already, or partly, are not fetched again.
fn download(repository: &str) -> Outcome<PathBuf> {
    if !has_cache() {
        return Err(Failure::new(
            3,
            "there is no folder for downloads, because there is no home folder; set HF_HOME to one",
        ));
    }
    let token = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty());
    let mut builder = ApiBuilder::from_env().with_progress(true);
    if token.is_some() {
        builder = builder.with_token(token);
    }
    let api = builder.build().map_err(|e| refused(repository, &e))?;
    let api = api.model(repository.to_owned());
    let list = api.info().map_err(|e| refused(repository, &e))?;
    let names: Vec<String> = list.siblings.iter().map(|s| s.rfilename.clone()).collect();
    let wanted = |name: &str| {
        !name.contains('/')
            && (name.ends_with(".safetensors")
                || name.ends_with(".json")
                || name == "chat_template.jinja")
            && !name.starts_with("consolidated")
    };
    if !names.iter().any(|n| n.ends_with(".safetensors")) {
        return Err(Failure::new(
            4,
            format!("{repository} has no .safetensors; its owner has to publish it in that format"),
        ));
    }
    let mut folder = None;
    for name in names.iter().filter(|n| wanted(n)) {
        let mut path = fetch(&api, repository, name)?;
        // What is here already may be of an earlier commit, if a download broke off.
        if path.parent().and_then(Path::file_name) != Some(OsStr::new(&list.sha)) {
            path = api.download(name).map_err(|e| refused(repository, &e))?;
        }
        if name == "config.json" {
            folder = path.parent().map(Path::to_owned);
        }
    }
    folder.ok_or_else(|| Failure::new(4, format!("{repository} has no config.json")))
}

fn fetch(api: &ApiRepo, repository: &str, name: &str) -> Outcome<PathBuf> {
    api.get(name).map_err(|e| refused(repository, &e))
}

/// What can be done about a download that failed.
fn refused(repository: &str, e: &ApiError) -> Failure {
    let message = match http_status(e) {
        Some(401 | 403) => format!(
            "{repository} is gated or private: accept its licence at its page on the hub, make an access token, and set HF_TOKEN to it"
        ),
        Some(404) => format!("{repository} is not on the hub; check the spelling of OWNER/NAME"),
        _ => format!(
            "{repository} cannot be fetched (is there a network?): {e}; run the command again to resume"
        ),
    };
    Failure::new(5, message)
}

/// The status that the hub answered with, if that is what failed.
fn http_status(e: &ApiError) -> Option<u16> {
    match e {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        ApiError::TooManyRetries(last) => http_status(last),
        _ => None,
    }
}
