//! The command line: filters over the cases.

use std::path::PathBuf;
use std::str::FromStr;

use apl_ffi::cpu::{Features, Isa};
use apl_ffi::matmul::Activations;
use apl_ffi::quant::Bits;

/// What `--help` prints.
pub const HELP: &str = "\
Times products of quantised matrices against what the machine can do.

usage: make bench BENCH='[options]'      (or: cargo bench --bench matmul -- [options])

Each option that filters takes several values with commas between them.
  --bits 1,2,4,8            widths
  --mode f32,int8,sign      activations (sign: with 1 bit only)
  --n 1,8,64,512            vectors at once
  --shape 1024x1024,...     rows x columns; also 4096x4096 and 11008x4096
  --group 32                columns a scale covers; 0 is a whole row
  --threads 1,0             threads; 0 is every processor this process may use
  --from memory,cache       weights rotated through memory, or the same ones again and again
  --isa scalar|avx2|avx512  the instruction-set level; default: the best
  --no-amx                  AVX-512 without AMX
  --rotate-mib 1024         memory to rotate through: more than the last-level cache
  --quick                   fewer rounds, and 4096x4096 at 1, 8 and 512 vectors unless asked otherwise
  --latency                 the cost of a call, and of loading the library, instead of products
  --library PATH            the shared library that --latency loads
  --json PATH               where the JSON goes; default target/bench/matmul.json
";

/// Where the weights are when a product starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory: every call uses another copy, and together the copies are larger than the
    /// last-level cache.
    Memory,
    /// In whatever cache holds them: every call uses the same copy.
    Cache,
}

impl Place {
    /// The name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Place::Memory => "memory",
            Place::Cache => "cache",
        }
    }
}

/// The name of an activation mode on the command line and in the table.
pub fn mode_name(mode: Activations) -> &'static str {
    match mode {
        Activations::F32 => "f32",
        Activations::Int8 => "int8",
        Activations::Sign => "sign",
    }
}

/// A parsed command line.
pub struct Args {
    /// Bit widths.
    pub bits: Vec<Bits>,
    /// Activation modes.
    pub modes: Vec<Activations>,
    /// Numbers of vectors.
    pub ns: Vec<usize>,
    /// Rows and columns.
    pub shapes: Vec<(usize, usize)>,
    /// Columns per group.
    pub groups: Vec<usize>,
    /// Threads.
    pub threads: Vec<usize>,
    /// Where the weights are.
    pub places: Vec<Place>,
    /// The instruction-set level.
    pub isa: Isa,
    /// Whether AMX may be used.
    pub amx: bool,
    /// Bytes to rotate through.
    pub rotate: usize,
    /// Rounds per case.
    pub rounds: usize,
    /// Measure calls and loading instead of products.
    pub latency: bool,
    /// The shared library for `latency`.
    pub library: Option<PathBuf>,
    /// Where the JSON goes; `None`: nowhere.
    pub json: Option<PathBuf>,
}

impl Args {
    /// Parses the arguments after the program's name.
    ///
    /// Cargo adds `--bench` when benchmarking and not when testing; without it the run is a smoke
    /// test of every case at a tiny size.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
        let all = std::thread::available_parallelism().map_or(1, |n| n.get());
        let (mut bench, mut quick) = (false, false);
        let (mut ns, mut shapes) = (None, None);
        let mut args = Args {
            bits: Bits::ALL.to_vec(),
            modes: vec![Activations::F32, Activations::Int8, Activations::Sign],
            ns: Vec::new(),
            shapes: Vec::new(),
            groups: vec![32],
            threads: if all == 1 { vec![1] } else { vec![1, all] },
            places: vec![Place::Memory, Place::Cache],
            isa: Isa::best(),
            amx: true,
            rotate: 1 << 30,
            rounds: 15,
            latency: false,
            library: None,
            json: Some("target/bench/matmul.json".into()),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--bench" => bench = true,
                "--quick" => quick = true,
                "--latency" => args.latency = true,
                "--bits" => args.bits = list(&value()?, |s| Bits::new(number(s)? as i64))?,
                "--mode" => args.modes = list(&value()?, mode)?,
                "--n" => ns = Some(list(&value()?, number)?),
                "--shape" => shapes = Some(list(&value()?, shape)?),
                "--group" => args.groups = list(&value()?, number)?,
                "--threads" => {
                    let given = list(&value()?, number)?;
                    args.threads = given
                        .iter()
                        .map(|&t| if t == 0 { all } else { t })
                        .collect();
                    args.threads.dedup();
                }
                "--from" => args.places = list(&value()?, place)?,
                "--isa" => args.isa = one(&value()?, Isa::from_name)?,
                "--no-amx" => args.amx = false,
                "--rotate-mib" => {
                    args.rotate = one(&value()?, |s| number(s)?.checked_mul(1 << 20))?
                }
                "--library" => args.library = Some(value()?.into()),
                "--json" => args.json = Some(value()?.into()),
                _ => return Err(format!("unknown argument {word:?}\n\n{HELP}")),
            }
        }
        if !args.isa.available() {
            return Err(format!("this processor offers at most \"{}\"", Isa::best()));
        }
        args.amx &= args.isa == Isa::Avx512 && Features::detect().amx();
        if !bench {
            args.smoke();
            return Ok(args);
        }
        if quick {
            args.rounds = 5;
            ns = ns.or(Some(vec![1, 8, 512]));
            shapes = shapes.or(Some(vec![(4096, 4096)]));
        }
        args.ns = ns.unwrap_or(vec![1, 8, 64, 512]);
        args.shapes = shapes.unwrap_or(vec![(1024, 1024), (4096, 4096), (11008, 4096)]);
        Ok(args)
    }

    fn smoke(&mut self) {
        self.ns = vec![1, 8];
        self.shapes = vec![(64, 64)];
        self.rotate = 1 << 20;
        self.rounds = 1;
        self.latency = false;
        self.json = None;
    }
}

fn list<T>(text: &str, item: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    text.split(',').map(|s| one(s, &item)).collect()
}

fn one<T>(text: &str, item: impl Fn(&str) -> Option<T>) -> Result<T, String> {
    item(text).ok_or(format!("{text:?} is not a value of this option\n\n{HELP}"))
}

fn number(text: &str) -> Option<usize> {
    usize::from_str(text).ok()
}

fn shape(text: &str) -> Option<(usize, usize)> {
    let (rows, cols) = text.split_once('x')?;
    Some((number(rows)?, number(cols)?))
}

fn mode(text: &str) -> Option<Activations> {
    [Activations::F32, Activations::Int8, Activations::Sign]
        .into_iter()
        .find(|&m| mode_name(m) == text)
}

fn place(text: &str) -> Option<Place> {
    [Place::Memory, Place::Cache]
        .into_iter()
        .find(|p| p.name() == text)
}
