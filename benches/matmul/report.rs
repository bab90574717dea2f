//! The table on the terminal, and as JSON.

use std::path::Path;

use apl_ffi::error::{Error, Result};
use serde_json::{Value, json};

use crate::args::{Args, mode_name};
use crate::case::{Case, Measured};
use crate::ceilings::{Arithmetic, Ceilings};

/// A report under construction.
pub struct Report {
    head: Value,
    rows: Vec<Value>,
}

impl Report {
    /// Prints the head of the table, with the ceilings at the start.
    pub fn begin(args: &Args, ceilings: &mut Ceilings) -> Report {
        let mut at_start = Vec::new();
        for &threads in &args.threads {
            let read = ceilings.read_memory(threads) / 1e9;
            let peak = |arithmetic| ceilings.peak(arithmetic, threads).map(|p| p / 1e9);
            let (integer, float) = (peak(Arithmetic::Integer), peak(Arithmetic::Float));
            let text = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.1}"));
            println!(
                "{threads} threads: reading {} GB/s, {} {} Gop/s, {} {} Gop/s",
                text(Some(read)),
                ceilings.peak_name(Arithmetic::Integer),
                text(integer),
                ceilings.peak_name(Arithmetic::Float),
                text(float),
            );
            at_start.push(json!({
                "threads": threads, "read_gb_s": read, "integer_gop_s": integer, "float_gop_s": float,
            }));
        }
        println!(
            "level {}, rotating through {} MiB; %read and %peak are shares of these, measured again beside each case",
            args.isa,
            args.rotate >> 20
        );
        println!(
            "{:>4} {:<4} {:>11} {:>5} {:>4} {:<6} {:>3} {:>10} {:>7} {:>5} {:>8} {:>5}  path",
            "bits",
            "mode",
            "shape",
            "group",
            "n",
            "from",
            "thr",
            "us",
            "GB/s",
            "%read",
            "Gop/s",
            "%peak"
        );
        Report {
            head: json!({
                "isa": args.isa.name(), "amx": args.amx, "rotate_bytes": args.rotate,
                "integer_ceiling": ceilings.peak_name(Arithmetic::Integer),
                "float_ceiling": ceilings.peak_name(Arithmetic::Float),
                "ceilings_at_start": at_start,
            }),
            rows: Vec::new(),
        }
    }

    /// Prints one row.
    pub fn row(&mut self, case: &Case<'_>, m: &Measured) {
        let w = case.copies.first();
        let (gbs, gops) = (
            w.bytes() as f64 / m.seconds / 1e9,
            case.operations() / m.seconds / 1e9,
        );
        let share = m
            .peak_share
            .map_or("-".into(), |s| format!("{:.1}", 100.0 * s));
        println!(
            "{:>4} {:<4} {:>11} {:>5} {:>4} {:<6} {:>3} {:>10.1} {:>7.2} {:>5.1} {:>8.1} {:>5}  {}",
            w.bits(),
            mode_name(w.activations()),
            format!("{}x{}", w.rows(), w.cols()),
            case.copies.group,
            case.n,
            case.place.name(),
            case.rt.pool().threads(),
            m.seconds * 1e6,
            gbs,
            100.0 * m.read_share,
            gops,
            share,
            w.path(),
        );
        self.rows.push(json!({
            "bits": w.bits(), "mode": mode_name(w.activations()), "rows": w.rows(), "cols": w.cols(),
            "group": case.copies.group, "n": case.n, "from": case.place.name(),
            "threads": case.rt.pool().threads(), "path": w.path(), "bytes": w.bytes(),
            "us": m.seconds * 1e6, "us_p10": m.spread.0 * 1e6, "us_p90": m.spread.1 * 1e6,
            "gb_s": gbs, "read_ceiling_gb_s": m.read_ceiling / 1e9, "read_share": m.read_share,
            "gop_s": gops, "peak_ceiling_gop_s": m.peak_ceiling.map(|p| p / 1e9), "peak_share": m.peak_share,
        }));
    }

    /// Writes the JSON, unless `path` is `None`.
    pub fn end(self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let io = |e: std::io::Error| Error::io(format!("{}: {e}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let mut all = self.head;
        all["cases"] = Value::Array(self.rows);
        std::fs::write(path, format!("{all:#}\n")).map_err(io)?;
        println!("written: {}", path.display());
        Ok(())
    }
}
