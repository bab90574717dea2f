//! Models fetched from a hub that these tests play: what succeeds, what is refused, what breaks off and goes on.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use serde_json::{Value, json};

/// A repository whose weights are behind an index, and the one file that its index names.
const SHARDED: (&str, &str) = ("some/sharded", "model-00001-of-00001.safetensors");

/// The file that breaks off when it is first sent, after so many bytes.
const BROKEN: (&str, usize) = ("model.safetensors", 5000);

/// A repository with a commit between a download and the next.
const MOVING: &str = "some/moving";

/// Answers as the hub does until the process ends, and tells of every file that was asked for from a byte on.
fn hub() -> (String, Receiver<(String, usize)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = channel();
    thread::spawn(move || {
        let mut broken = false;
        for stream in listener.incoming() {
            // A client that has gone is no concern of the hub.
            let _ = answer(&mut stream.unwrap(), &mut broken, &tell);
        }
    });
    (address, told)
}

fn answer(
    stream: &mut TcpStream,
    broken: &mut bool,
    tell: &Sender<(String, usize)>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if let Some(bytes) = line.strip_prefix("range: bytes=") {
            let (first, last) = bytes.split_once('-').unwrap();
            range = Some((first.parse::<usize>().unwrap(), last.parse::<usize>().ok()));
        }
        if line.is_empty() {
            break;
        }
    }
    // `/api/models/OWNER/NAME/revision/main` lists a repository, `/OWNER/NAME/resolve/main/FILE` is a file of it.
    let mut parts = path
        .trim_start_matches("/api/models/")
        .splitn(3, ['/'])
        .take(2);
    let repository = [parts.next(), parts.next()]
        .map(Option::unwrap_or_default)
        .join("/");
    // One that moves on to another commit when a download has broken off.
    let commit = match path.contains(MOVING) && *broken {
        true => "later",
        false => "main",
    };
    let status = match repository.trim_start_matches('/') {
        "some/gated" => "401 Unauthorized",
        "some/private" => "403 Forbidden",
        "some/unknown" => "404 Not Found",
        // The number of a refusal that is none.
        "some/busy-404" => "503 Service Unavailable",
        _ => "200 OK",
    };
    if status != "200 OK" {
        return write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if path.starts_with("/api/") {
        let weights = match repository.trim_start_matches('/') {
            name if name == SHARDED.0 => vec![INDEX, SHARDED.1],
            _ => vec!["model.safetensors"],
        };
        let names = ["config.json", "tokenizer.json"].into_iter().chain(weights);
        let siblings: Vec<Value> = names.map(|n| json!({"rfilename": n})).collect();
        let list = json!({"sha": commit, "siblings": siblings}).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{list}",
            list.len()
        );
    }
    let name = path.rsplit('/').next().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama-linear");
    let bytes = match name {
        INDEX => index(&fs::read(folder.join("model.safetensors"))?),
        name if name == SHARDED.1 => fs::read(folder.join("model.safetensors"))?,
        name => fs::read(folder.join(name))?,
    };
    let (first, last) = range.unwrap_or((0, None));
    let end = last.map_or(bytes.len(), |last| last + 1);
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{}/{}\r\nETag: \"{name}\"\r\n\
         x-repo-commit: {commit}\r\nConnection: close\r\n\r\n",
        end - first,
        end - 1,
        bytes.len()
    )?;
    if last.is_some() {
        return stream.write_all(&bytes[first..end]);
    }
    tell.send((name.to_owned(), first)).ok();
    if name == BROKEN.0 && !std::mem::replace(broken, true) {
        return stream.write_all(&bytes[..BROKEN.1]);
    }
    stream.write_all(&bytes[first..])
}

const INDEX: &str = "model.safetensors.index.json";

/// The index that puts every tensor of a safetensors file into the one shard.
fn index(safetensors: &[u8]) -> Vec<u8> {
    let (len, rest) = safetensors.split_first_chunk::<8>().unwrap();
    let header = &rest[..u64::from_le_bytes(*len) as usize];
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let tensors = header.keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<String, Value> = tensors
        .map(|name| (name.clone(), json!(SHARDED.1)))
        .collect();
    json!({ "weight_map": map }).to_string().into_bytes()
}

fn convert(hub: &str, home: &Path, repository: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apl-ffi"));
    command.args(["convert", repository, "--group", "8", "--out"]);
    command
        .arg(home.join("out"))
        .env_remove("HF_TOKEN")
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", hub);
    command.output().unwrap()
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let (hub, told) = hub();
    let home = tempfile::tempdir().unwrap();
    let first = convert(&hub, home.path(), "some/model");
    let error = String::from_utf8_lossy(&first.stderr);
    assert_eq!(first.status.code(), Some(5), "{error}");
    assert!(error.contains("run the command again to resume"), "{error}");
    let second = convert(&hub, home.path(), "some/model");
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.success(), "{error}");
    assert!(home.path().join("out/model.json").is_file());
    let asked: Vec<usize> = told
        .try_iter()
        .filter(|(name, _)| name == BROKEN.0)
        .map(|(_, first)| first)
        .collect();
    assert_eq!(asked, [0, BROKEN.1]);
}

#[test]
fn a_download_that_goes_on_after_a_commit_mixes_nothing() {
    let (hub, _told) = hub();
    let home = tempfile::tempdir().unwrap();
    assert_eq!(convert(&hub, home.path(), MOVING).status.code(), Some(5));
    let second = convert(&hub, home.path(), MOVING);
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.success(), "{error}");
    let snapshots = home.path().join("hub/models--some--moving/snapshots/later");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(snapshots.join(name).is_file(), "{name}");
    }
}

/// Without a network, by the name that it was downloaded by, and as the conversion itself suggests.
#[test]
fn what_was_downloaded_is_found_again() {
    let (hub, _told) = hub();
    let home = tempfile::tempdir().unwrap();
    let output = convert(&hub, home.path(), SHARDED.0);
    let told = String::from_utf8(output.stdout).unwrap();
    let out = home.path().join("out/sharded.json");
    let suggested = format!("apl-ffi compare {} {}", out.display(), SHARDED.0);
    assert!(told.contains(&suggested), "{told}");
    let address = format!("https://huggingface.co/{}", SHARDED.0);
    for reference in [SHARDED.0, &address] {
        let output = super::command(&["compare", out.to_str().unwrap(), reference])
            .env("HF_HOME", home.path())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
    }
}

/// Large models are in several files behind an index, and the cache of the hub holds nothing but links.
#[test]
fn a_model_in_shards() {
    let (hub, _told) = hub();
    let home = tempfile::tempdir().unwrap();
    let output = convert(&hub, home.path(), SHARDED.0);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(home.path().join("out/sharded.json").is_file());
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, _told) = hub();
    let home = tempfile::tempdir().unwrap();
    for (repository, expected) in [
        ("some/gated", "set HF_TOKEN"),
        ("some/private", "set HF_TOKEN"),
        ("some/unknown", "check the spelling"),
        ("some/busy-404", "http status: 503"),
    ] {
        let output = convert(&hub, home.path(), repository);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{error}");
        assert!(error.contains(expected), "{repository}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
