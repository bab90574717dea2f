//! The configuration: the JSON of `apl_ffi_init`, then the environment, then the defaults.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::panic_scope::enter_library;
use crate::cpu::{Features, Isa};
use crate::cuda::{self, Gpu};
use crate::error::{Error, Result};
use crate::members::{abridged, members};

/// The most threads that can be requested; more is a mistake rather than a machine.
pub const MAX_THREADS: usize = 1024;

/// Which backend a configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// CUDA if it works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA or an error.
    Cuda,
}

/// A configuration, with the environment already applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The backend.
    pub backend: BackendChoice,
    /// The ordinals of the CUDA devices: at least one, without duplicates. The layers of a model
    /// are distributed among them in this order.
    pub devices: Vec<u32>,
    /// Threads, including the calling one; 0: as many as the processors this process may use.
    pub threads: usize,
    /// The instruction set; `None`: the best.
    pub isa: Option<Isa>,
    /// Whether AMX may be used, where the instruction set is AVX-512.
    pub amx: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            backend: BackendChoice::Auto,
            devices: vec![0],
            threads: 0,
            isa: None,
            amx: true,
        }
    }
}

/// A backend in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The CPU kernels of this library.
    Cpu,
    /// A CUDA device.
    Cuda,
}

impl Backend {
    /// The name that `apl_ffi_info` gives.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        }
    }
}

/// A configuration resolved for this machine.
///
/// Two are equal if the library would be the same: the reason for the backend does not matter, but
/// whether weights may fall back to the CPU does.
#[derive(Clone)]
pub struct Resolved {
    /// The devices in use, in the order of the configuration; none: the CPU is used.
    pub gpus: Vec<Arc<Gpu>>,
    /// Whether CUDA was demanded, so that weights never fall back to the CPU for lack of memory.
    pub demanded: bool,
    /// Why this backend: a sentence for `apl_ffi_info`.
    pub reason: String,
    /// Threads, including the calling one: 1 to [`MAX_THREADS`].
    pub threads: usize,
    /// The instruction set; this processor has it.
    pub isa: Isa,
    /// Whether AMX is used too; this processor has it.
    pub amx: bool,
}

impl Resolved {
    /// The backend.
    pub fn backend(&self) -> Backend {
        match self.gpus.is_empty() {
            true => Backend::Cpu,
            false => Backend::Cuda,
        }
    }

    /// The ordinals of the CUDA devices; none on the CPU.
    pub fn devices(&self) -> Vec<u32> {
        self.gpus.iter().map(|gpu| ordinal(gpu)).collect()
    }
}

impl PartialEq for Resolved {
    fn eq(&self, other: &Self) -> bool {
        let key = |r: &Resolved| (r.devices(), r.demanded, r.threads, r.isa, r.amx);
        key(self) == key(other)
    }
}

impl Eq for Resolved {}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved")
            .field("devices", &self.devices())
            .field("demanded", &self.demanded)
            .field("reason", &self.reason)
            .field("threads", &self.threads)
            .field("isa", &self.isa)
            .field("amx", &self.amx)
            .finish()
    }
}

const BACKENDS: &str = "\"auto\", \"cpu\" or \"cuda\"";
const ISAS: &str = "\"auto\", \"scalar\", \"avx2\" or \"avx512\"";
const DEVICE: &str = "an integer from 0 to 2147483647";
const DEVICES: &str = "an array of different integers from 0 to 2147483647, at least one";
const THREADS: &str = "an integer from 0 to 1024";
const AMX: &str = "true, false, 1 or 0";
const AMX_IN_TEXT: &str = "0 or 1";
const KEYS: &str = "backend, device, devices, threads, isa or amx";

impl Config {
    /// Parses a JSON object; the environment applies where a key is absent. Empty text is an empty
    /// object.
    ///
    /// # Errors
    /// `ERR_CONFIG` for malformed JSON, an unknown key, or a value of the wrong type or outside its
    /// domain, in the text or in the environment: the message names the key or the variable, what
    /// was found and what was expected.
    pub fn from_json(text: &str) -> Result<Config> {
        Config::from_json_and(text, |name| env::var_os(name))
    }

    /// As [`Config::from_json`] with a given environment.
    fn from_json_and(text: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<Config> {
        let object = members("config", text)?;
        let mut config = Config::default();
        for (key, value) in &object {
            config.set(key, value)?;
        }
        if object.contains_key("device") && object.contains_key("devices") {
            return Err(Error::config(
                "config has both \"device\" and \"devices\", expected one of them",
            ));
        }
        for (key, name) in [
            ("backend", "APL_FFI_BACKEND"),
            ("threads", "APL_FFI_THREADS"),
            ("isa", "APL_FFI_ISA"),
            ("amx", "APL_FFI_AMX"),
        ] {
            match env(name) {
                Some(text) if !text.is_empty() && !object.contains_key(key) => {
                    config.set_from_environment(key, name, &text.to_string_lossy())?;
                }
                _ => {}
            }
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        let wrong = |expected| {
            let found = abridged(&value.to_string());
            Error::config(format!(
                "config has \"{key}\": {found}, expected {expected}"
            ))
        };
        match key {
            "backend" => {
                let backend = value.as_str().and_then(backend_named);
                self.backend = backend.ok_or_else(|| wrong(BACKENDS))?;
            }
            "device" => {
                self.devices = vec![device_ordinal(value).ok_or_else(|| wrong(DEVICE))?];
            }
            "devices" => {
                self.devices = device_ordinals(value).ok_or_else(|| wrong(DEVICES))?;
            }
            "threads" => {
                let threads = value.as_u64().and_then(thread_count);
                self.threads = threads.ok_or_else(|| wrong(THREADS))?;
            }
            "isa" => {
                let isa = value.as_str().and_then(isa_named);
                self.isa = isa.ok_or_else(|| wrong(ISAS))?;
            }
            "amx" => self.amx = truth(value).ok_or_else(|| wrong(AMX))?,
            _ => {
                let key = abridged(key);
                return Err(Error::config(format!(
                    "config has the unknown key \"{key}\", expected {KEYS}"
                )));
            }
        }
        Ok(())
    }

    fn set_from_environment(&mut self, key: &str, name: &str, text: &str) -> Result<()> {
        let wrong = |expected| {
            let found = abridged(text);
            Error::config(format!(
                "the environment variable {name} is \"{found}\", expected {expected}"
            ))
        };
        match key {
            "backend" => self.backend = backend_named(text).ok_or_else(|| wrong(BACKENDS))?,
            "isa" => self.isa = isa_named(text).ok_or_else(|| wrong(ISAS))?,
            "amx" => {
                self.amx = match text {
                    "0" => false,
                    "1" => true,
                    _ => return Err(wrong(AMX_IN_TEXT)),
                }
            }
            _ => {
                let threads = text.parse().ok().and_then(thread_count);
                self.threads = threads.ok_or_else(|| wrong(THREADS))?;
            }
        }
        Ok(())
    }

    /// Resolves the configuration for this machine; devices that are already open are taken from
    /// `open`.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for an instruction set that the processor lacks; `ERR_BACKEND` if CUDA is
    /// demanded and cannot be used.
    pub fn resolve(&self, open: &[Arc<Gpu>]) -> Result<Resolved> {
        let best = Isa::best();
        let isa = self.isa.unwrap_or(best);
        if isa > best {
            return Err(Error::unsupported(format!(
                "isa is \"{isa}\", this processor offers at most \"{best}\""
            )));
        }
        let (gpus, reason) = self.choose(open)?;
        Ok(Resolved {
            demanded: !gpus.is_empty() && self.backend == BackendChoice::Cuda,
            gpus,
            reason,
            threads: match self.threads {
                0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)),
                n => n,
            },
            isa,
            amx: self.amx && isa == Isa::Avx512 && Features::detect().amx(),
        })
    }

    /// The devices, or none for the CPU, and the reason. If any device cannot be used, none is: a
    /// part of them is not what was requested.
    fn choose(&self, open: &[Arc<Gpu>]) -> Result<(Vec<Arc<Gpu>>, String)> {
        const ASKED: &str = "the configuration asks for it";
        if self.backend == BackendChoice::Cpu {
            return Ok((Vec::new(), ASKED.to_owned()));
        }
        let demanded = self.backend == BackendChoice::Cuda;
        let reason = match self.devices.len() {
            _ if demanded => ASKED,
            1 => "a CUDA device is there",
            _ => "the CUDA devices are there",
        };
        let device = |&wanted: &u32| match open.iter().find(|gpu| ordinal(gpu) == wanted) {
            Some(gpu) => Ok(Arc::clone(gpu)),
            None => {
                let _inside = enter_library();
                cuda::open(wanted)
            }
        };
        match self.devices.iter().map(device).collect() {
            Ok(gpus) => Ok((gpus, reason.to_owned())),
            Err(why) if demanded => Err(Error::backend(format!("backend is \"cuda\", {why}"))),
            Err(why) => Ok((Vec::new(), why)),
        }
    }
}

fn ordinal(gpu: &Gpu) -> u32 {
    gpu.device().about().ordinal
}

/// A Boolean; 1 and 0, which are APL's, are accepted too.
fn truth(value: &Value) -> Option<bool> {
    match value.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => value.as_bool(),
    }
}

fn device_ordinal(value: &Value) -> Option<u32> {
    let device = value.as_u64().filter(|&d| d <= i32::MAX as u64)?;
    u32::try_from(device).ok()
}

/// At least one, without duplicates.
fn device_ordinals(value: &Value) -> Option<Vec<u32>> {
    let list = value.as_array().filter(|list| !list.is_empty())?;
    let mut devices = Vec::new();
    for value in list {
        let device = device_ordinal(value).filter(|device| !devices.contains(device))?;
        devices.push(device);
    }
    Some(devices)
}

fn backend_named(name: &str) -> Option<BackendChoice> {
    match name {
        "auto" => Some(BackendChoice::Auto),
        "cpu" => Some(BackendChoice::Cpu),
        "cuda" => Some(BackendChoice::Cuda),
        _ => None,
    }
}

/// The inner `None` is `"auto"`.
fn isa_named(name: &str) -> Option<Option<Isa>> {
    match name {
        "auto" => Some(None),
        _ => Isa::from_name(name).map(Some),
    }
}

fn thread_count(n: u64) -> Option<usize> {
    usize::try_from(n).ok().filter(|&n| n <= MAX_THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn parse(text: &str, env: &[(&str, &str)]) -> Result<Config> {
        Config::from_json_and(text, |name| {
            let (_, value) = env.iter().find(|(n, _)| *n == name)?;
            Some(OsString::from(value))
        })
    }

    #[test]
    fn nothing_is_the_defaults() {
        for text in ["", " \n\t", "{}", " { } "] {
            assert_eq!(parse(text, &[]), Ok(Config::default()), "{text:?}");
        }
        let empty = [
            ("APL_FFI_BACKEND", ""),
            ("APL_FFI_THREADS", ""),
            ("APL_FFI_ISA", ""),
            ("APL_FFI_AMX", ""),
        ];
        assert_eq!(parse("", &empty), Ok(Config::default()));
        let auto = r#"{"backend": "auto", "threads": 0, "isa": "auto", "amx": true, "device": 0}"#;
        assert_eq!(parse(auto, &[]), Ok(Config::default()));
    }

    #[test]
    fn every_key() {
        let text = r#"{"backend": "cuda", "device": 2147483647, "threads": 1024, "isa": "scalar", "amx": 0}"#;
        let config = Config {
            backend: BackendChoice::Cuda,
            devices: vec![i32::MAX as u32],
            threads: 1024,
            isa: Some(Isa::Scalar),
            amx: false,
        };
        assert_eq!(parse(text, &[]), Ok(config));
    }

    #[test]
    fn one_device_or_several() {
        let devices = |text| parse(text, &[]).unwrap().devices;
        assert_eq!(devices(""), [0]);
        assert_eq!(devices(r#"{"device": 3}"#), [3]);
        assert_eq!(
            devices(r#"{"devices": [2, 0, 2147483647]}"#),
            [2, 0, i32::MAX as u32]
        );
    }

    #[test]
    fn the_environment_speaks_where_a_key_is_absent() {
        let env = [
            ("APL_FFI_BACKEND", "cpu"),
            ("APL_FFI_THREADS", "3"),
            ("APL_FFI_ISA", "avx2"),
            ("APL_FFI_AMX", "0"),
        ];
        let config = Config {
            backend: BackendChoice::Cpu,
            devices: vec![0],
            threads: 3,
            isa: Some(Isa::Avx2),
            amx: false,
        };
        assert_eq!(parse("", &env), Ok(config.clone()));
        assert_eq!(
            parse(r#"{"threads": 5, "isa": "auto", "amx": true}"#, &env),
            Ok(Config {
                threads: 5,
                isa: None,
                amx: true,
                ..config
            })
        );
        // A variable that is not needed is not read.
        assert!(parse(r#"{"threads": 5}"#, &[("APL_FFI_THREADS", "many")]).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, env, parts) in [
            ("{", vec![], vec!["not a JSON object", "EOF"]),
            ("[1]", vec![], vec!["not a JSON object"]),
            ("null", vec![], vec!["not a JSON object"]),
            ("{} {}", vec![], vec!["not a JSON object", "trailing"]),
            (
                r#"{"thread": 2}"#,
                vec![],
                vec!["unknown key \"thread\"", KEYS],
            ),
            (
                r#"{"device": 0, "devices": [0]}"#,
                vec![],
                vec!["both \"device\" and \"devices\"", "expected one"],
            ),
            (
                r#"{"devices": []}"#,
                vec![],
                vec![r#""devices": []"#, DEVICES],
            ),
            (
                r#"{"devices": [1, 0, 1]}"#,
                vec![],
                vec!["[1,0,1]", DEVICES],
            ),
            (r#"{"devices": [0, 1.5]}"#, vec![], vec!["[0,1.5]", DEVICES]),
            (
                r#"{"devices": [0, "1"]}"#,
                vec![],
                vec![r#"[0,"1"]"#, DEVICES],
            ),
            (r#"{"devices": [-1]}"#, vec![], vec!["[-1]", DEVICES]),
            (
                r#"{"devices": 1}"#,
                vec![],
                vec![r#""devices": 1"#, DEVICES],
            ),
            (
                r#"{"backend": "CPU"}"#,
                vec![],
                vec![r#""backend": "CPU""#, BACKENDS],
            ),
            (
                r#"{"backend": null}"#,
                vec![],
                vec![r#""backend": null"#, BACKENDS],
            ),
            (r#"{"device": -1}"#, vec![], vec![r#""device": -1"#, DEVICE]),
            (
                r#"{"device": 2147483648}"#,
                vec![],
                vec!["2147483648,", DEVICE],
            ),
            (
                r#"{"threads": -1}"#,
                vec![],
                vec![r#""threads": -1"#, THREADS],
            ),
            (r#"{"threads": 1025}"#, vec![], vec!["1025", THREADS]),
            (r#"{"threads": 2.5}"#, vec![], vec!["2.5", THREADS]),
            (r#"{"threads": "2"}"#, vec![], vec![r#""2""#, THREADS]),
            (
                r#"{"threads": 18446744073709551616}"#,
                vec![],
                vec!["threads", THREADS],
            ),
            (r#"{"isa": "neon"}"#, vec![], vec!["neon", ISAS]),
            (r#"{"isa": ["avx2"]}"#, vec![], vec![r#"["avx2"]"#, ISAS]),
            (
                "",
                vec![("APL_FFI_BACKEND", "gpu")],
                vec!["APL_FFI_BACKEND", "gpu", BACKENDS],
            ),
            (
                "",
                vec![("APL_FFI_THREADS", "-1")],
                vec!["APL_FFI_THREADS", "-1", THREADS],
            ),
            (
                "",
                vec![("APL_FFI_THREADS", "1025")],
                vec!["APL_FFI_THREADS", "1025"],
            ),
            (
                "",
                vec![("APL_FFI_ISA", "sse")],
                vec!["APL_FFI_ISA", "sse", ISAS],
            ),
            (r#"{"amx": 2}"#, vec![], vec![r#""amx": 2"#, AMX]),
            (r#"{"amx": "1"}"#, vec![], vec![r#""amx": "1""#, AMX]),
            (
                "",
                vec![("APL_FFI_AMX", "no")],
                vec!["APL_FFI_AMX", "no", AMX_IN_TEXT],
            ),
        ] {
            let error = parse(text, &env).expect_err(text);
            assert_eq!(error.status(), Status::Config, "{text} {env:?}");
            for part in parts {
                assert!(error.message().contains(part), "{text} {env:?}: {error}");
            }
        }
    }

    #[test]
    fn a_message_does_not_repeat_a_long_value() {
        let text = format!(r#"{{"isa": "{}"}}"#, "é".repeat(10_000));
        let error = parse(&text, &[]).unwrap_err();
        assert!(error.message().len() < 300, "{error}");
        let deep = "[".repeat(100_000);
        assert_eq!(parse(&deep, &[]).unwrap_err().status(), Status::Config);
    }

    #[cfg(unix)]
    #[test]
    fn an_environment_that_is_not_text() {
        use std::os::unix::ffi::OsStringExt;
        let bytes = |_: &str| Some(OsString::from_vec(vec![0xff]));
        let error = Config::from_json_and("", bytes).unwrap_err();
        assert_eq!(error.status(), Status::Config);
    }

    #[test]
    fn resolving() {
        let resolve = |text| parse(text, &[]).unwrap().resolve(&[]);
        let cpu = resolve(r#"{"backend": "cpu"}"#).unwrap();
        assert_eq!((cpu.backend(), cpu.devices()), (Backend::Cpu, vec![]));
        assert_eq!(cpu.reason, "the configuration asks for it");
        assert_eq!(cpu.isa, Isa::best());
        assert!((1..=MAX_THREADS).contains(&cpu.threads));
        let seven = resolve(r#"{"backend": "cpu", "threads": 7}"#).unwrap();
        assert_eq!(seven.threads, 7);
        assert!(THREADS.ends_with(&MAX_THREADS.to_string()));

        // The same library by another configuration.
        let text = format!(
            r#"{{"backend": "cpu", "device": 3, "threads": {}, "isa": "{}"}}"#,
            cpu.threads, cpu.isa
        );
        assert_eq!(resolve(&text), Ok(cpu.clone()));
        assert_ne!(seven, cpu);
    }

    /// On any machine: the reason given when CUDA is demanded is the same as when it is not chosen.
    #[test]
    fn cuda_is_chosen_or_the_reason_is_told() {
        let resolve = |text| parse(text, &[]).unwrap().resolve(&[]);
        let auto = resolve(r#"{"backend": "auto"}"#).unwrap();
        match resolve(r#"{"backend": "cuda"}"#) {
            Ok(cuda) => {
                assert_eq!((auto.devices(), cuda.devices()), (vec![0], vec![0]));
                assert_ne!(auto, cuda, "only one of them may leave weights to the CPU");
            }
            Err(e) => {
                assert_eq!(
                    (auto.backend(), e.status()),
                    (Backend::Cpu, Status::Backend)
                );
                assert_eq!(e.message(), format!("backend is \"cuda\", {}", auto.reason));
                assert!(!auto.reason.is_empty());
            }
        }
    }

    #[test]
    fn an_instruction_set_may_be_lowered_and_not_raised() {
        for isa in Isa::ALL {
            let config = Config {
                backend: BackendChoice::Cpu,
                isa: Some(isa),
                ..Config::default()
            };
            match config.resolve(&[]) {
                Ok(resolved) => assert!(isa.available() && resolved.isa == isa),
                Err(e) => assert!(!isa.available() && e.status() == Status::Unsupported, "{e}"),
            }
        }
    }

    #[test]
    fn amx_may_be_left_alone() {
        let resolve = |isa, amx| {
            let config = Config {
                backend: BackendChoice::Cpu,
                isa,
                amx,
                ..Config::default()
            };
            config.resolve(&[]).unwrap()
        };
        let has = Features::detect().amx();
        assert_eq!(resolve(None, true).amx, has);
        assert!(!resolve(None, false).amx);
        assert!(!resolve(Some(Isa::Scalar), true).amx);
        let differ = resolve(None, true) != resolve(None, false);
        assert_eq!(differ, has);
    }
}
