//! Weights and the codes that stand for them.

use apl_ffi::quant::Bits;
use apl_ffi::validate::{Distribution, Report};

use super::page::group;
use crate::plot::page::section;
use crate::plot::{Axis, Bars, Scale, bars, escaped, percent, round_numbers};

/// A plot for each width.
pub fn section_of(report: &Report) -> String {
    let plots: Vec<String> = report.distributions.iter().map(distribution).collect();
    let of = report.distributions.first().map_or("", |d| d.of.as_str());
    section(
        "Weights and their codes",
        &format!(
            "Weights of {} over the scale of their group, as an area; the share of weights that each code stands for, as bars. The \
             last level on one side has no partner: a symmetric scale may be negative, so that it serves the longer tail.",
            escaped(of)
        ),
        &plots,
    )
}

fn distribution(d: &Distribution) -> String {
    let reach = d.weights.last().map_or(1.0, |(x, _)| x.ceil());
    let most = d
        .codes
        .iter()
        .map(|(_, s)| *s)
        .chain(d.weights.iter().map(|(_, s)| *s))
        .fold(0.0, f64::max);
    let step = match d.bits {
        Bits::Eight => 32,
        Bits::Four => 2,
        _ => 1,
    };
    let levels = d
        .codes
        .iter()
        .map(|(level, _)| *level)
        .filter(|level| level % step == 0);
    let places: Vec<f64> = round_numbers(0.0, 1.12 * most)
        .filter(|v| *v > 0.0)
        .collect();
    bars(&Bars {
        title: &format!(
            "{} bit{}, {}",
            d.bits.get(),
            if d.bits == Bits::One { "" } else { "s" },
            group(d.group)
        ),
        x: Axis {
            label: "weight / scale",
            scale: Scale::Linear,
            range: (-reach, reach),
            ticks: levels.map(|l| (f64::from(l), l.to_string())).collect(),
        },
        y: Axis {
            label: "share of weights",
            scale: Scale::Linear,
            range: (0.0, 1.12 * most),
            ticks: places.iter().map(|&v| (v, percent(v))).collect(),
        },
        names: ["weights, share a unit", "codes"],
        area: d.weights.clone(),
        bars: d
            .codes
            .iter()
            .map(|(level, share)| {
                (
                    f64::from(*level),
                    *share,
                    format!("level {level}: {} of the weights", percent(*share)),
                )
            })
            .collect(),
        width: if d.bits == Bits::Eight { 1.0 } else { 0.5 },
    })
}
